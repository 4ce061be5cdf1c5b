"""Two processes that share the images, some of them given twice, come to the figures of one."""

import json
import multiprocessing

import torch
from torch import distributed
from torch.utils.data import DistributedSampler

from cbam.evaluate.detection import CocoEvaluator, VocEvaluator
from tests.evaluate.detection.scenes import filled, random_scene

SCENE = {"seed": 7, "images": 11, "masks": True}
CLASSES = ("a", "b", "c")


def evaluators(records):
    return CocoEvaluator(records, CLASSES, masks=True), VocEvaluator(records, CLASSES)


def work(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    records, found = random_scene(**SCENE)
    sampler = DistributedSampler(records, num_replicas=2, rank=rank, shuffle=False)
    given = [records[index].image_id for index in sampler]
    written = {"given": given, "scores": []}
    for evaluator in evaluators(records):
        for image_id in given:
            evaluator.update(image_id, found[image_id])
        evaluator.gather()
        written["scores"].append(evaluator.compute())
    (folder / f"{rank}.json").write_text(json.dumps(written))
    distributed.destroy_process_group()


def test_two_processes(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=work, args=(rank, tmp_path)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    parts = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    given = parts[0]["given"] + parts[1]["given"]
    assert len(given) == 12  # padded
    assert len(set(given)) == 11
    records, found = random_scene(**SCENE)
    alone = [json.loads(json.dumps(filled(evaluator, found).compute())) for evaluator in evaluators(records)]
    assert parts[0]["scores"] == parts[1]["scores"] == alone


def test_one_process_needs_no_group():
    records, found = random_scene(2)
    evaluator = filled(VocEvaluator(records, CLASSES), found)
    expected = evaluator.compute()
    evaluator.gather()
    assert evaluator.compute() == expected
