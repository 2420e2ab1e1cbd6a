import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nestor.measure.score import accuracy, auroc, balanced_accuracy


def naive(scores: list[float], labels: list[int]) -> float:
    pairs = [
        (p, n) for p, a in zip(scores, labels, strict=True) if a for n, b in zip(scores, labels, strict=True) if not b
    ]
    return sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs) / len(pairs)


def test_auroc_by_hand():
    labels = torch.tensor([0, 0, 1, 1])
    assert auroc(torch.tensor([0.1, 0.2, 0.3, 0.4]), labels) == 1
    assert auroc(torch.tensor([0.4, 0.3, 0.2, 0.1]), labels) == 0
    assert auroc(torch.tensor([0.1, 0.4, 0.35, 0.8]), labels) == 0.75
    assert auroc(torch.full((4,), 7.0), labels) == 0.5
    assert auroc(torch.tensor([0.1, 0.3, 0.3, 0.8]), labels) == 0.875


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30))
def test_auroc_is_the_share_of_pairs_in_order(pairs):
    pairs = [*pairs, (0, True), (1, False)]
    scores, labels = [float(s) for s, _ in pairs], [int(b) for _, b in pairs]
    found = auroc(torch.tensor(scores), torch.tensor(labels))
    assert found == pytest.approx(naive(scores, labels), abs=1e-12)
    assert auroc(-torch.tensor(scores), torch.tensor(labels)) == pytest.approx(1 - found, abs=1e-12)


def test_accuracies_by_hand():
    labels = torch.tensor([0, 0, 0, 1])
    assert accuracy(torch.tensor([0, 0, 0, 0]), labels) == 0.75
    assert balanced_accuracy(torch.tensor([0, 0, 0, 0]), labels) == 0.5
    assert balanced_accuracy(torch.tensor([0, 1, 0, 1]), labels) == pytest.approx((2 / 3 + 1) / 2)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
def test_balanced_accuracy_is_the_mean_recall(pairs):
    predicted, labels = (torch.tensor(part) for part in zip(*pairs, strict=True))
    recalls = []
    for label in {b for _, b in pairs}:
        of_class = [a == b for a, b in pairs if b == label]
        recalls.append(sum(of_class) / len(of_class))
    assert balanced_accuracy(predicted, labels) == pytest.approx(sum(recalls) / len(recalls))
    assert accuracy(predicted, labels) == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"one prediction a label.*got \(3,\) and \(2,\)"):
        accuracy(torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match="one prediction a label"):
        balanced_accuracy(torch.zeros(0), torch.zeros(0))
    with pytest.raises(ValueError, match="both classes, labelled 0 and 1; got labels 1"):
        auroc(torch.rand(3), torch.ones(3, dtype=torch.long))
    with pytest.raises(ValueError, match="got labels 0, 1, 2"):
        auroc(torch.rand(3), torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="got NaN"):
        auroc(torch.tensor([0.0, float("nan")]), torch.tensor([0, 1]))
