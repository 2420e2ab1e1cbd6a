"""timm's verbs on an elastic network."""

import pytest
import torch
from tiny_vit import DENSE, NARROWED, tiny

from nestor.models.timm_style import TimmStyle, with_body

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["class", "mean", "class_mean", "class_distill", "attention"])
def test_features_then_head_is_the_whole(kind: str):
    vit = tiny(NARROWED, classes=3, head=kind, prefix=0 if kind == "attention" else 2)
    model = TimmStyle(vit)
    for budget in (1.0, 0.6):
        model.budget = budget
        assert vit.budget == budget
        tokens = model.forward_features(IMAGES)
        assert torch.equal(tokens, vit(IMAGES).tokens)
        torch.testing.assert_close(model.forward_head(tokens), model(IMAGES))
        assert torch.equal(model(IMAGES), vit(IMAGES).logits)


@pytest.mark.parametrize("kind", ["class", "mean", "class_mean", "attention"])
def test_the_classifier_reads_what_comes_before_the_logits(kind: str):
    model = TimmStyle(tiny(NARROWED, classes=3, head=kind))
    tokens = model.forward_features(IMAGES)
    read = model.forward_head(tokens, pre_logits=True)
    assert torch.equal(model.get_classifier()(read), model.forward_head(tokens))


def test_facts_are_those_that_timm_tells():
    model = TimmStyle(tiny(NARROWED, classes=3, mean=(0.1, 0.2, 0.3)))
    assert (model.num_features, model.embed_dim, model.head_hidden_size) == (24, 24, 24)
    assert (model.num_classes, model.num_prefix_tokens) == (3, 1)
    assert model.pretrained_cfg["input_size"] == (3, 16, 16)
    assert model.pretrained_cfg["mean"] == (0.1, 0.2, 0.3)


def test_without_a_head_features_are_pooled():
    vit = tiny(DENSE)
    model = TimmStyle(vit)
    assert torch.equal(model(IMAGES), vit(IMAGES).tokens[:, 0])
    assert torch.equal(model.forward_head(model.forward_features(IMAGES)), model(IMAGES))
    assert isinstance(model.get_classifier(), torch.nn.Identity)
    bare = TimmStyle(tiny(DENSE, prefix=0))
    assert torch.equal(bare(IMAGES), bare.vit(IMAGES).tokens.mean(1))


@pytest.mark.parametrize(
    ("head", "prefix", "pool", "found"),
    [
        ("class_mean", 1, None, "class_mean"),
        ("attention", 0, None, "mean"),
        ("class_distill", 2, None, "class"),
        ("class", 1, "avg", "mean"),
        ("mean", 1, "token", "class"),
    ],
)
def test_a_fresh_classifier_leaves_the_body_alone(head: str, prefix: int, pool: str | None, found: str):
    vit = tiny(NARROWED, classes=3, labels=("a", "b", "c"), head=head, prefix=prefix)
    model = TimmStyle(vit.train())
    body = {name: parameter for name, parameter in vit.named_parameters() if not name.startswith("head.")}
    model.reset_classifier(5, pool)
    settings = model.vit.settings
    assert (settings.classes, settings.labels, settings.head) == (5, (), found)
    assert model(IMAGES).shape == (2, 5)
    assert model.training
    assert model.vit.training
    now = dict(model.vit.named_parameters())
    assert all(now[name] is parameter for name, parameter in body.items())
    assert vit.settings.classes == 3
    assert vit(IMAGES).logits.shape == (2, 3)
    model.reset_classifier(0)
    assert model.vit.head is None
    assert model(IMAGES).shape == (2, 24)


def test_a_body_keeps_its_precision_and_flags():
    vit = tiny(NARROWED).bfloat16()
    vit.checkpointing = True
    model = TimmStyle(vit)
    model.reset_classifier(2)
    assert model.vit.checkpointing
    assert model(IMAGES.bfloat16()).dtype == torch.bfloat16
    assert with_body(vit, vit.settings).head is None


def test_what_cannot_be_is_refused():
    model = TimmStyle(tiny(NARROWED, classes=3, head="mean_then_norm"))
    tokens = model.forward_features(IMAGES)
    with pytest.raises(ValueError, match=r"forward_head cannot read 'mean_then_norm' from tokens alone"):
        model.forward_head(tokens)
    with pytest.raises(ValueError, match=r"global_pool must be one of token, avg; got 'map'"):
        TimmStyle(tiny()).reset_classifier(2, "map")
    with pytest.raises(ValueError, match=r"needs a class token and this network has none. Use 'avg'"):
        TimmStyle(tiny(prefix=0)).reset_classifier(2, "token")
