"""Recipes: their exact claims, their evidence, and what they say when asked for something else."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from garments import needs_garments
from plain_vit import plain_forward, relative
from typer.testing import CliRunner

from nestor.cli import app
from nestor.data import load
from nestor.measure.repeats import draw_repeats
from nestor.models.pretrained import read
from nestor.recipes.base import Claim
from nestor.recipes.catalogue import state, system, systems
from nestor.recipes.evidence import draw, due, find, names, prove, sources
from nestor.routing.score import ExpectedLoss
from nestor.surgery.fold import fold
from nestor.surgery.nest import nest
from nestor.types import Signal

OF_GARMENTS = ("mone_scratch", "mone_video")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs_garments if name in OF_GARMENTS else ()) for name in names()]
)
def test_exact_claims_hold_and_evidence_is_complete(name: str, tmp_path: Path):
    target = prove(name, quick=True, evidence=tmp_path / "evidence", runs=tmp_path / "runs")
    record = json.loads(target.read_text())
    exact = [claim for claim in record["claims"] if claim["exact"]]
    assert exact
    assert all(claim["holds"] for claim in exact)
    assert record["sources"] == sources(name)
    for picture in target.parent.glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert {"settings", "seconds", "versions", "machine", "date"} <= record.keys()
    assert not (tmp_path / "evidence").exists()


def test_a_claim_is_its_relation():
    assert Claim(text="", left=1, relation="<=", right=1).holds
    assert not Claim(text="", left=1, relation="<", right=1).holds
    assert Claim(text="", left=2, relation=">=", right=1).holds


def test_evidence_is_of_a_recipe_and_its_claims_are_the_numbers_beside_them():
    for path in Path(__file__).parent.parent.joinpath("evidence").glob("*.json"):
        record = json.loads(path.read_text())
        assert record["recipe"] == path.stem
        assert path.stem in names()
        for claim in record["claims"]:
            told = {key: claim[key] for key in ("text", "left", "relation", "right", "exact")}
            assert Claim(**told).holds == claim["holds"]


def test_curves_show_the_mean_of_the_runs_and_their_range(tmp_path: Path):
    runs = [
        {"dense": {"1.0": 0.9 + x}, "nested": {"1.0": 0.9, "0.5": 0.8 + x / 2}, "merging": {"0.5": 0.1}}
        for x in (0.0, 0.02)
    ]
    found = find("mone").curves({"auroc": runs})
    assert found.lines["nested"] == {1.0: [0.9, 0.9], 0.5: [0.8, 0.81]}
    assert found.levels == {"dense": [0.9, 0.92]}
    (axes,) = draw_repeats(found).axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert np.asarray(lines["nested"].get_ydata()) == pytest.approx([0.805, 0.9])
    assert np.asarray(lines["dense"].get_ydata()) == pytest.approx([0.91, 0.91])
    assert axes.get_ylim()[0] == pytest.approx(0.77)
    evidence = tmp_path / "mone.json"
    evidence.write_text(json.dumps({"recipe": "mone", "details": {"auroc": []}}))
    assert draw(evidence) is None
    evidence.write_text(json.dumps({"recipe": "mone", "details": {"auroc": runs}}))
    assert draw(evidence) == tmp_path / "mone.png"
    assert (tmp_path / "mone.png").read_bytes().startswith(b"\x89PNG")


def test_curves_of_a_comparison_show_each_network_where_it_was_scored():
    runs = [
        {
            "nested": {"0.5": 0.8 + x, "1.0": 0.9},
            "merging": {"0.5": 0.7},
            "dense of equal MACs": {"0.5": 0.6, "1.0": 0.9},
        }
        for x in (0.0, 0.02)
    ]
    found = find("mone_scratch").curves({"accuracy": runs})
    assert found.lines["nested"] == {0.5: pytest.approx([0.8, 0.82]), 1.0: [0.9, 0.9]}
    assert found.lines["dense of equal MACs"] == {0.5: [0.6, 0.6]}
    assert found.levels == {"dense": [0.9, 0.9]}
    assert found.least == pytest.approx(0.77)


@needs_garments
def test_contestants_stand_for_shares_of_the_dense_networks_cost():
    recipe = find("mone_scratch")
    settings = recipe.Settings(pictures=64, test=16, calibration=16)
    found = list(recipe.contestants(settings, 0))
    full = next(each.model for each in found if each.places == {1.0: 1.0}).full_macs(16)
    places = {}
    for each in found:
        places.setdefault(each.line, set()).update(each.places)
        for place, own in each.places.items():
            spent = each.model.macs(each.model.plan(16, own)) / full
            token = 1 / 16 if each.line not in ("one width", "pruning", "merging") else 0.3
            assert place - token < spent
            assert spent <= place or place == 1
        assert each.spent() == pytest.approx(
            [each.model.macs(each.model.plan(16, own)) / (p * full) for p, own in each.places.items() if p < 1]
        )
    everywhere = {*settings.budgets, 1.0}
    assert places.pop("dedicated") == set(settings.dedicated)
    assert places.pop("merging") == places.pop("pruning") == everywhere - {0.25}
    assert set(map(frozenset, places.values())) == {frozenset(everywhere)}


def test_every_system_is_listed_once_and_every_recipe_of_a_paper_belongs_to_one():
    assert len(systems()) == 110
    assert len({known.arxiv for known in systems()}) == 110
    proven = [name for known in systems() for name in known.recipes]
    assert sorted(proven) == [name for name in names() if find(name).ARXIV]
    keys = ("mone", "mone_pretrained", "mone_scratch", "mone_video", "MoNE", "2407.19985")
    assert {system(key) for key in keys} == {systems()[0]}
    with pytest.raises(ValueError, match="'MoNEY' is no published system that is known here"):
        system("MoNEY")


def test_a_system_works_when_all_claims_of_all_its_evidence_hold(tmp_path: Path):
    mone, unbuilt = system("mone"), next(known for known in systems() if not known.recipes)
    assert state(unbuilt, tmp_path).state == "not yet"
    assert state(mone, tmp_path).state == "partly"
    first, second, *others = mone.recipes

    def write(name: str, *holds: bool, made_with: str = "old") -> None:
        told = {"recipe": name, "claims": [{"holds": each} for each in holds], "sources": made_with}
        (tmp_path / f"{name}.json").write_text(json.dumps(told))

    def found() -> tuple[str, int, bool]:
        at = state(mone, tmp_path)
        return at.state, len(at.evidence), at.current

    write(first, True)
    assert found() == ("partly", 1, False)
    write(second, True, False)
    assert found() == ("partly", 2, False)
    for name in (first, second, *others):
        write(name, True, True, made_with=sources(name))
    assert found() == ("works", len(mone.recipes), True)
    for broken in ("{}", '{"recipe": "moon", "claims": [{"holds": true}], "sources": ""}'):
        (tmp_path / "mone.json").write_text(broken)
        with pytest.raises(ValueError, match=r"mone\.json is no evidence .* Run `nestor prove mone` again"):
            state(mone, tmp_path)


def test_what_is_due_is_what_is_missing_or_of_earlier_sources(tmp_path: Path):
    assert due(tmp_path) == names()
    for name, made_with in (("mone", sources("mone")), ("emoe", "old")):
        (tmp_path / f"{name}.json").write_text(json.dumps({"sources": made_with}))
    assert due(tmp_path) == tuple(name for name in names() if name != "mone")
    for name in names():
        (tmp_path / f"{name}.json").write_text(json.dumps({"sources": sources(name)}))
    result = CliRunner().invoke(app, ["prove", "--evidence", str(tmp_path)])
    assert (result.exit_code, result.output.strip()) == (0, "All evidence is of the sources as they are.")


def test_unknown_recipes_are_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"recipe must be one of .*mone.*; got 'moon'"):
        find("moon")


def asked(*words: str) -> str:
    result = CliRunner().invoke(app, ["recipes", *words])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_line_lists_and_explains_them(tmp_path: Path):
    empty = ["--evidence", str(tmp_path)]
    assert "0 works, " in asked(*empty)
    assert all(known.arxiv in asked(*empty) for known in systems()[:3])
    assert "Not built yet" in asked("WiseAD")
    told = asked("mone", *empty)
    assert "prefixes of the same weights" in told
    assert "`nestor prove mone` makes it" in told
    record = {
        "recipe": "mone",
        "claims": [{"text": "it works", "left": 1, "relation": "<=", "right": 2, "exact": False, "holds": True}],
        "sources": "old",
        "seconds": 60,
        "date": "2026-01-02",
        "machine": {"processor": "abacus"},
    }
    (tmp_path / "mone.json").write_text(json.dumps(record))
    told = asked("mone", *empty)
    assert "it works" in told
    assert "1 minutes on 2026-01-02, on abacus, with earlier sources" in told
    assert "`nestor prove mone_scratch` makes it" in told
    listed = json.loads(asked("--json", *empty))
    assert len(listed) == 110
    assert listed[0]["state"] == "partly"
    assert listed[0]["recipes"] == ["mone", "mone_pretrained", "mone_scratch", "mone_training", "mone_video"]
    assert json.loads(asked("mone", "--json", *empty)) == listed[0]


@torch.no_grad()
def test_real_weights_stay_exact_and_bfloat16_stays_as_near_as_the_original():
    plain = read("dinov2-small")
    pictures = load("elpv", size=112).limit(18, seed=5)
    images = torch.stack([pictures[i][0] for i in range(18)])
    elastic, few = nest(fold(plain), images[2:]), images[:2]
    wanted, _ = plain_forward(plain, few)
    assert relative(elastic(few, budget=1.0).tokens, wanted) < 2e-5
    with torch.autocast("cpu", torch.bfloat16):
        original, _ = plain_forward(plain, few)
        ours = elastic(few, budget=1.0).tokens
    assert relative(ours.float(), wanted) < 1.25 * relative(original.float(), wanted)


def test_expected_loss_finds_a_loss_that_depends_on_the_token():
    torch.manual_seed(0)
    tokens = torch.randn(8, 50, 12)
    direction = torch.randn(12)
    normal = tokens * tokens.square().mean(-1, keepdim=True).rsqrt()
    losses = (normal @ direction).exp()
    score = ExpectedLoss(3, 12, 3)
    score.calibrate(tokens, losses, ridge=1e-3)
    logits = score(tokens, Signal())
    assert logits.shape == (8, 50, 3)
    probabilities = logits.softmax(-1)
    for expert in (1, 2):
        ranks = torch.stack([part.flatten().argsort().argsort() for part in (probabilities[..., expert], losses)])
        assert torch.corrcoef(ranks.float())[0, 1] > 0.98
