"""The page of `cbam explain` in a real browser: it fits, is silent, and its tables sort by keyboard."""

from __future__ import annotations

import html
import json
import re
import subprocess

import pytest
import torch
from tests.attach.networks import resnet
from tests.compare.test_report_browser import CHROMIUM, FLAGS, look, pytestmark  # noqa: F401
from tests.explain.test_explain import picture

import cbam

SORT = """<!doctype html><iframe id="page" style="width:1280px;height:900px" srcdoc="{page}"></iframe><script>
addEventListener("load", () => {{
  const page = document.getElementById("page").contentDocument;
  page.querySelector("details").open = true;
  const table = page.querySelector("table.sortable");
  const column = index => [...table.tBodies[0].rows].map(row => row.cells[index].textContent);
  const button = table.tHead.rows[0].cells[2].querySelector("button");
  button.focus();
  const found = {{ focused: page.activeElement === button, before: column(2) }};
  button.click();
  found.down = column(2); found.state = table.tHead.rows[0].cells[2].getAttribute("aria-sort");
  button.click();
  found.up = column(2);
  document.documentElement.dataset.found = JSON.stringify(found);
}});
</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    network = resnet().eval()
    cbam.attach(network)
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, cbam.CBAM):
            module.spatial_attention.conv.weight.data.normal_(0, 0.05)
    names = ["averyverylongclassnamewithoutanyspaceinit" * 2, "<script>alert(1)</script>", *"cdefghij"]
    models = {"plain": resnet().eval(), "with <i>CBAM</i>": network}
    found = cbam.explain(models, [picture(), picture(1)], image_size=64, class_names=names, label=1)
    return found.save(tmp_path_factory.mktemp("page"), command=["cbam", "explain"]).read_text(
        encoding="utf-8"
    )


def test_it_fits_and_is_silent(page, tmp_path):
    found, console = look(page, tmp_path)
    assert console == []
    for name in ("desktop", "phone"):
        assert found[name]["wide"] <= found[name]["shown"]
        assert found[name]["images"] == 2 * (1 + 2 + 4)  # input, two maps, masks of four sizes
        assert found[name]["figures"] == 2


def test_a_table_sorts_by_its_headings(page, tmp_path):
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(SORT.format(page=html.escape(page)), encoding="utf-8")
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", wrapper.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    (found,) = re.findall(r'data-found="([^"]*)"', done.stdout)
    result = json.loads(html.unescape(found))
    assert result["focused"]
    assert result["state"] == "descending"
    assert result["before"] == [str(c) for c in (64, 64, 128, 128, 256, 256, 512, 512)]
    assert result["down"] == [str(c) for c in (512, 512, 256, 256, 128, 128, 64, 64)]
    assert result["up"] == result["before"]
