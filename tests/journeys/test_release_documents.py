"""After an approval the model document names it; the first stays, the numbers are the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from serving import release_documents
from serving.cli import cli
from serving.delivery import Delivery
from serving.release_documents import document_missing, document_release, documents_of
from tests.journeys.delivered import content, handed_in, worked, workspace
from tests.journeys.small_world import World


@pytest.fixture(scope="module")
def challenged(world: World, tmp_path_factory: pytest.TempPathFactory) -> Delivery:
    """A challenger nobody has decided on."""
    delivery = workspace(world, tmp_path_factory.mktemp("documents") / "workspace")
    handed_in(delivery, world)
    (job,) = worked(delivery)
    assert job.release == "acme/cards/1", job.error
    return delivery


def run(delivery: Delivery, *words: str) -> str:
    place = ["--workspace", str(delivery.workspace.root)]
    answer = CliRunner().invoke(cli, [words[0], *place, *words[1:]])
    assert answer.exit_code == 0, answer.output
    return answer.output


def numbers(folder: Path) -> list[Any]:
    """Every number shown but those of the approvals themselves."""
    rows = json.loads((folder / "numbers.json").read_text(encoding="utf-8"))
    return [row for row in rows if row["file"] != "approvals"]


def test_the_approval_stands_in_a_document_beside_the_first(challenged: Delivery) -> None:
    delivery = challenged
    root = delivery.workspace.root / "documents"
    (made,) = (delivery.workspace.runs).glob("*/documented-*")
    out = run(delivery, "approve", "acme/cards/1", "--by", "bob", "--note", "read on Monday")
    first, second = documents_of(delivery, delivery.registry.release("acme/cards/1"))
    assert f"document {root / second}" in out
    assert sorted(p.name for p in root.iterdir()) == sorted([first, second])
    before = content(made)
    assert {k: v for k, v in before.items() if k != "record.json"} == content(root / first)
    for language in ("en", "zh"):
        text = (root / second / f"model_document.{language}.md").read_text(encoding="utf-8")
        assert "bob" in text and "read on Monday" in text
        assert "bob" not in (root / first / f"model_document.{language}.md").read_text("utf-8")
    old, new = (json.dumps(numbers(root / d)).encode() for d in (first, second))
    assert old == new and len(numbers(root / first)) > 50
    shown = run(delivery, "releases")
    assert f"document {second[:12]}" in shown and "champion" in shown


def test_again_it_is_the_same_and_an_interrupted_one_is_made_up_for(
    challenged: Delivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivery = challenged
    run(delivery, "approve", "acme/cards/1", "--by", "bob")
    release = delivery.registry.release("acme/cards/1")
    before, held = documents_of(delivery, release), content(delivery.workspace.root / "documents")
    document_release(delivery, release)
    assert documents_of(delivery, release) == before
    assert content(delivery.workspace.root / "documents") == held
    # As if the process had died between the approval and its document.
    monkeypatch.setattr(release_documents, "documents_of", lambda *_: [])
    said: list[str] = []
    document_missing(delivery, said.append)
    assert said and before[-1] in said[0]
    assert content(delivery.workspace.root / "documents") == held
