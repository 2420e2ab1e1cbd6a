"""Recipes: their exact claims, their evidence, and what they say when asked for something else."""

import json
from pathlib import Path

import pytest
import torch
from plain_vit import plain_forward, relative
from typer.testing import CliRunner

from nestor.cli import app
from nestor.data import load
from nestor.models.pretrained import read
from nestor.recipes.base import Claim, find, names, prove, sources
from nestor.routing.score import ExpectedLoss
from nestor.surgery.fold import fold
from nestor.surgery.nest import nest
from nestor.types import Signal


@pytest.mark.parametrize("name", names())
def test_exact_claims_hold_and_evidence_is_complete(name: str, tmp_path: Path):
    target = prove(name, quick=True, evidence=tmp_path / "evidence", runs=tmp_path / "runs")
    record = json.loads(target.read_text())
    exact = [claim for claim in record["claims"] if claim["exact"]]
    assert exact
    assert all(claim["holds"] for claim in exact)
    assert record["sources"] == sources()
    assert {"settings", "seconds", "versions", "machine", "date"} <= record.keys()
    assert not (tmp_path / "evidence").exists()


def test_a_claim_is_its_relation():
    assert Claim(text="", left=1, relation="<=", right=1).holds
    assert not Claim(text="", left=1, relation="<", right=1).holds
    assert Claim(text="", left=2, relation=">=", right=1).holds


def test_unknown_recipes_are_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"recipe must be one of .*mone.*; got 'moon'"):
        find("moon")


def test_the_command_line_lists_them():
    result = CliRunner().invoke(app, ["recipes"])
    assert result.exit_code == 0
    assert all(name in result.output for name in names())


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
