"""`riskfm backbone prepare`, `riskfm tokenizer extend`, `riskfm schema map`."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from foundation.checkpoint import load_backbone
from foundation.field_guess import guess_role
from foundation.schema import load_schema
from foundation.tokenizer import Tokenizer
from serving.cli import cli
from tests.foundation.test_pretraining import write_store


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli, [str(w) for w in words])
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("commands") / "a")


def test_prepare_prints_what_it_learned_from(store: Path, tmp_path: Path) -> None:
    held = tmp_path / "held.csv"
    held.write_text("entity_id\ne0001\ne0002\n")
    words = ("backbone", "prepare", "--store", store, "-o", tmp_path / "bb", "--until")
    code, text = run(*words, "2020-11-01", "--exclude-entities", held)
    assert code == 0, text
    assert "weights carried over from nano-credit" in text and "2020-11-01T00:00:00" in text
    assert load_backbone(tmp_path / "bb").run["entity_digest"] != "all"
    code, text = run(*words, "2020-11-01")
    assert code == 2 and "exists already" in text
    code, text = run("backbone", "prepare", "--store", store, "-o", tmp_path / "x", "--until", "?")
    assert code == 2 and "no date" in text


def test_extend_keeps_old_ids(store: Path, tmp_path: Path) -> None:
    code, text = run(
        "tokenizer", "fit", "--store", store, "-o", tmp_path / "old", "--until", "2020-03-01"
    )
    assert code == 0, text
    words = ("tokenizer", "extend", "--store", store, "-o", tmp_path / "new", "--tokenizer")
    code, text = run(*words, tmp_path / "old", "--until", "2020-11-01")
    assert code == 0 and "fingerprint" in text, text
    old, new = (
        Tokenizer.from_json((tmp_path / n / "tokenizer.json").read_text()) for n in ("old", "new")
    )
    assert new.size >= old.size and new.code_text[: old.size] == old.code_text
    code, text = run(*words, tmp_path / "none")
    assert code == 2 and "tokenizer fit" in text


def test_map_gives_roles_and_keeps_those_given(tmp_path: Path) -> None:
    schema = {
        "name": "new",
        "sources": {
            "loan": {
                "path": "loan.parquet",
                "fields": {
                    "outstandingBalance": {"kind": "money"},
                    "status": {"kind": "category"},
                    "amount": {"kind": "money", "role": "limit"},
                    "zzz": {"kind": "category"},
                },
            }
        },
        "profile": {"fields": {"age": {"kind": "number"}}},
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(schema))
    words = ("schema", "map", tmp_path / "s.yaml", "-o", tmp_path / "inner" / "out.yaml")
    code, text = run(*words)
    assert code == 0, text
    made = load_schema(tmp_path / "inner" / "out.yaml")
    fields = made.sources["loan"].fields
    assert {n: f.role for n, f in fields.items()} == {
        "outstandingBalance": "balance",
        "status": "status",
        "amount": "limit",
        "zzz": "other",
    }
    assert made.profile_fields["age"].role == "person"
    assert made.sources["loan"].path == "../loan.parquet"
    assert "3 roles guessed of 5 fields" in text
    assert "kept" in text and "none found" in text
    assert run(*words)[0] == 2
    code, text = run(*words, "--force", "--source", "lone")
    assert code == 2 and "did you mean 'loan'" in text
    code, text = run(*words, "--force", "--source", "profile")
    assert code == 0 and "1 roles guessed of 1 fields" in text


def test_a_role_is_guessed_from_name_and_kind() -> None:
    assert guess_role("creditLimit", "money") == "limit"
    assert guess_role("opened", "timestamp") == "date"
    assert guess_role("q", "money") == "amount"
