"""The demo, made small: it writes one whole report and a network that loads."""

from pathlib import Path

from nestor.demo import Demo, run
from nestor.models.saved import load_model


def test_demo_leaves_a_report_and_an_elastic_network(tmp_path: Path):
    small = Demo(
        size=56,
        train=32,
        test=16,
        calibration=16,
        dense_epochs=1,
        epochs=1,
        rounds=1,
        budgets=(1.0, 0.5),
        shown=(0.5,),
        out=tmp_path,
    )
    page = run(small).read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    rivals = ("token merging", "token pruning", "one width for all", "nested, random router")
    for part in (*rivals, "Defective cell", "Functional cell"):
        assert part in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert load_model(tmp_path / "elastic").settings.labels == ("functional", "defective")
