"""Several processes or devices: nn.DataParallel, DistributedDataParallel, FSDP2; on the CPU, over gloo."""

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

import cbam
from tests.attach.networks import resnet

IMAGE = torch.rand(2, 3, 32, 32)
START = """
    import sys, torch, torch.distributed as dist, cbam
    from tests.attach.networks import resnet
    rank = int(sys.argv[1])
    dist.init_process_group("gloo", rank=rank, world_size=2)
    generator = torch.Generator().manual_seed(rank)  # each process its own images
    def attached(**options):
        model = resnet()
        cbam.attach(model, preset="official", input_size=(3, 32, 32), **options)
        return model
"""


def on_two_processes(tmp_path, script):
    """Run a script in two processes; it must print "done" in both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    file = tmp_path / "worker.py"
    end = 'print("done", flush=True)\ndist.destroy_process_group()\n'
    file.write_text(textwrap.dedent(START) + textwrap.dedent(script) + end)
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": root}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    workers = [subprocess.Popen([sys.executable, file, str(rank)], **pipes) for rank in range(2)]
    try:
        for worker in workers:
            out, err = worker.communicate(timeout=240)
            assert "done" in out, err
    finally:
        for worker in workers:
            worker.kill()


@pytest.mark.slow
def test_ddp_also_with_unused_gates(tmp_path):
    """The gates' gradients are averaged; none is unused, but where one is switched off DDP must be told."""
    on_two_processes(
        tmp_path,
        """
        from torch.nn.parallel import DistributedDataParallel
        for off in (False, True):
            model = attached()
            model.layer1[0].bn2.cbam.enabled = not off
            ddp = DistributedDataParallel(model, find_unused_parameters=off)
            optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
            for _ in range(2):
                optimizer.zero_grad()
                ddp(torch.rand(2, 3, 32, 32, generator=generator)).square().mean().backward()
                unused = [name for name, p in model.named_parameters() if p.grad is None]
                assert all(name.startswith("layer1.0.bn2.cbam.") for name in unused), unused
                assert bool(unused) == off
                optimizer.step()
            gate = model.layer3[0].bn2.cbam.channel_attention.mlp[2].weight.detach()
            both = [torch.empty_like(gate) for _ in range(2)]
            dist.all_gather(both, gate)
            assert gate.abs().sum() > 0 and torch.equal(both[0], both[1])
        """,
    )


@pytest.mark.slow
def test_fsdp2(tmp_path):
    """fully_shard of each block and of the whole: same outputs, same keys, gates that learn, and state dicts."""
    on_two_processes(
        tmp_path,
        """
        import copy
        from torch.distributed.checkpoint.state_dict import (
            StateDictOptions, get_model_state_dict, get_optimizer_state_dict, set_model_state_dict
        )
        from torch.distributed.fsdp import fully_shard
        model = attached(init="paper")
        keys, plain = list(model.state_dict()), copy.deepcopy(model).eval()
        for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
            for block in stage:
                fully_shard(block)
        fully_shard(model)
        assert list(model.state_dict()) == keys
        same = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(model.eval()(same), plain(same))
        full = StateDictOptions(full_state_dict=True, cpu_offload=True)
        before = get_model_state_dict(model, options=full)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        model.train()(torch.rand(2, 3, 32, 32, generator=generator)).square().mean().backward()
        optimizer.step()
        after = get_model_state_dict(model, options=full)
        moments = get_optimizer_state_dict(model, optimizer, options=full)
        if rank == 0:
            assert list(after) == keys and list(moments["state"]) == [n for n, _ in model.named_parameters()]
            moved = [k for k in keys if k.endswith("cbam.channel_attention.mlp.2.weight")]
            assert len(moved) == 8 and not any(torch.equal(after[k], before[k]) for k in moved)
            fresh = attached()
            fresh.load_state_dict(after)
        sent = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(model, dict(before) if rank == 0 else {}, options=sent)
        back = get_model_state_dict(model, options=full)
        assert rank or all(torch.equal(back[k], before[k]) for k in keys)
        """,
    )


class TestDataParallel:
    def test_without_devices_it_hands_on(self):
        model = resnet().eval()
        cbam.attach(model, init="paper", input_size=32)
        assert torch.equal(nn.DataParallel(model)(IMAGE), model(IMAGE))

    @pytest.mark.parametrize("preset", ["paper", "official"])
    def test_a_replica_computes_the_same_and_hands_its_gradients_back(self, preset):
        """torch's replicate() wants GPUs; this does with a model what it does there, in the same order."""
        model = resnet().eval()
        cbam.attach(model, init="paper", preset=preset, input_size=32)
        replica = replicated(model)
        assert torch.equal(replica(IMAGE), model(IMAGE))
        replica(IMAGE).square().sum().backward()
        gate = model.layer3[0].bn2.cbam.channel_attention.mlp[2].weight
        assert gate.grad.abs().sum() > 0


def replicated(model):
    modules = list(model.modules())
    copies = {module: module._replicate_for_data_parallel() for module in modules}
    for copied in copies.values():
        copied._former_parameters = {}
    for module, copied in copies.items():
        for name, child in module._modules.items():
            if child is None:
                copied._modules[name] = None
            else:
                setattr(copied, name, copies[child])
        for name, parameter in module._parameters.items():
            if parameter is None:
                copied._parameters[name] = None
            else:
                setattr(copied, name, parameter.clone())  # no leaf, so no parameter
                copied._former_parameters[name] = getattr(copied, name)
        for name, buffer in module._buffers.items():
            if buffer is None:
                copied._buffers[name] = None
            else:
                setattr(copied, name, buffer.clone())
    return copies[model]
