"""ImageNet's size by stand-ins: what they are, what stays bounded, and the page that tells of it."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from size_stand_ins import FIELDS, StandIn, copy_with_holes, stand_in

from sfd_cli.artifacts.fingerprints import finished
from sfd_cli.artifacts.sample_folder import Samples
from sfd_cli.artifacts.verification import verify
from sfd_cli.data.contents import read_contents
from sfd_cli.data.images import ImageManifest, list_image_folder
from sfd_cli.data.order import EpochSampler
from sfd_cli.data.prefetch import prefetched
from sfd_cli.data.store import Store, shard_name

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    return stand_in(tmp_path_factory.mktemp("size"), 1100, 100)


def test_a_stand_in_is_whole_to_every_reader(made: StandIn) -> None:
    store, manifest = Store(made.latents), ImageManifest.load(made.images)
    assert (len(store), len(manifest)) == (1100, 1100)
    assert [f"{store.classes[label]}/{file}" for label, file in zip(store.labels, store.files, strict=True)] == (
        manifest.files
    )
    assert len(read_contents(made.images, manifest) or []) == 1100
    assert list_image_folder(made.tree) == manifest.files
    assert not store.read("texture", range(0, 1100, 7)).any()
    finished(made.latents, "sfd encode-latents")
    assert len(Samples.open(made.samples).files) == made.sampled
    told, is_damaged = verify(made.latents)
    assert not is_damaged, told
    assert stand_in(made.root.parent, 1100, 100) == made


def test_a_copy_with_holes_has_the_same_bytes_and_takes_less(tmp_path: Path) -> None:
    content = np.zeros(300_001, np.uint8)
    content[[5, 200_000, 300_000]] = 1
    source, target = tmp_path / "source", tmp_path / "target"
    content.tofile(source)
    copy_with_holes(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks * 512 < 30_000


@pytest.mark.slow
def test_open_files_and_threads_stay_those_of_the_shards_whatever_is_read(tmp_path: Path) -> None:
    one = stand_in(tmp_path, 1252, 1)
    before = _open_files()
    store = Store(one.latents)
    assert _open_files() == before + 1252
    threads = threading.active_count()
    sampler = EpochSampler(len(store), 256, 0)

    def batches() -> list[np.ndarray]:
        return [store.read(field, *sampler.batch(step)) for step in range(10) for field in FIELDS]

    assert len(list(prefetched(batches(), 3))) == 20
    assert (_open_files(), threading.active_count()) == (before + 1252, threads)
    (one.latents / shard_name(7)).unlink()
    with pytest.raises(Exception, match="is missing"):
        Store(one.latents)
    assert _open_files() == before + 1252, "a store that cannot be opened closes what it had opened"


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_every_finding_has_one_line_with_a_verdict_and_files_that_exist() -> None:
    table = PAGE.read_text().partition("| finding | verdict | evidence |")[2]
    rows = re.findall(r"^\| F(\d+)\. (.+) \| (.+) \|(.*)\|$", table, flags=re.MULTILINE)
    assert [int(number) for number, *_ in rows] == list(range(1, 30))
    for number, _, verdict, evidence in rows:
        assert verdict == "open" or evidence.strip(), f"F{number} says {verdict} without evidence"
        for link in re.findall(r"\]\(([^)#]+)\)", evidence):
            assert (PAGE.parent / link).exists(), link
