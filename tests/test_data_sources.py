"""Sources: folders, tables and data sets give the same pictures, labels and clear errors."""

import io
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas
import pytest
import torch
from PIL import Image

from nestor.data import Pictures, load, load_splits, require_classes


@pytest.fixture(autouse=True)
def _offline(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    datasets.disable_progress_bars()

    def refuse(name: str):
        raise ConnectionError(f"no way to {name}")

    monkeypatch.setattr(datasets, "load_dataset", refuse)


def grey(value: int, size: int = 6) -> Image.Image:
    return Image.new("RGB", (size, size), (value, value, value))


def fill(folder: Path, **classes: int) -> Path:
    """Write so many pictures for each class, each of its own shade."""
    for place, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            grey(50 * place + number).save(folder / name / f"{number:03d}.png")
    return folder


def shades(pictures: Pictures) -> list[int]:
    return [int(pictures.pixels(index)[0, 0, 0]) for index in range(len(pictures))]


def test_a_folder_of_classes(tmp_path: Path):
    folder = fill(tmp_path, cat=2, ant=3)
    (folder / ".DS_Store").write_bytes(b"\0")
    (folder / "cat" / "._000.png").write_bytes(b"\0")
    (folder / "cat" / "notes.txt").write_text("hello")
    (folder / ".cache").mkdir()
    (folder / "docs").mkdir()
    grey(99).save(folder / "loose.png")
    (folder / "ant" / "deep" / "er").mkdir(parents=True)
    grey(90).save(folder / "ant" / "deep" / "er" / "x.PNG")
    pictures = load(folder, size=4)
    assert pictures.classes == ("ant", "cat")
    assert pictures.labels == (0, 0, 0, 0, 1, 1)
    assert shades(pictures) == [50, 51, 52, 90, 0, 1]
    assert pictures.names[3] == "ant/deep/er/x.PNG"
    assert pictures.skipped == (
        "loose.png: lies beside the class folders, so it has no class",
        "docs: a folder without pictures",
    )
    image, label = pictures[5]
    assert (image.shape, image.dtype, label) == ((3, 4, 4), torch.float32, 1)


def test_links_in_a_circle_add_nothing(tmp_path: Path):
    folder = fill(tmp_path / "set", a=1, b=1)
    (folder / "a" / "self").symlink_to(folder / "a")
    (folder / "a" / "up").symlink_to(folder)
    (folder / "a" / "top").symlink_to(tmp_path)
    (folder / "again").symlink_to(folder)
    pictures = load(folder, size=4)
    assert pictures.names == ("a/000.png", "b/000.png")
    fill(tmp_path / "store", c=2)
    (folder / "c").symlink_to(tmp_path / "store" / "c")
    assert load(folder, size=4).classes == ("a", "b", "c")


def test_numbered_classes_are_in_the_order_of_their_numbers(tmp_path: Path):
    assert load(fill(tmp_path, **{"10": 1, "9": 1, "2": 1}), size=4).classes == ("2", "9", "10")


def test_classes_that_look_the_same_are_refused(tmp_path: Path):
    for name in ("caf\u00e9", "cafe\u0301"):
        fill(tmp_path, **dict.fromkeys([name], 1))
    with pytest.raises(ValueError, match=r"different names.*look the same"):
        load(tmp_path, size=4)


def test_a_folder_without_sub_folders_and_a_single_picture_are_unlabelled(tmp_path: Path):
    for value in (3, 4):
        grey(value).save(tmp_path / f"{value}.png")
    for source, expected in ((tmp_path, [3, 4]), (tmp_path / "4.png", [4]), (str(tmp_path), [3, 4])):
        pictures = load(source, size=4)
        assert (pictures.classes, set(pictures.labels), shades(pictures)) == ((), {-1}, expected)
        with pytest.raises(ValueError, match=r"training needs labels.*sub-folder a class"):
            require_classes(pictures)


def test_one_class_loads_but_cannot_be_trained_on(tmp_path: Path):
    pictures = load(fill(tmp_path, only=3), size=4)
    require_classes(pictures, 1)
    with pytest.raises(ValueError, match="at least 2 classes; got 1: only"):
        require_classes(pictures)


def test_missing_and_empty_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*nothing"):
        load(tmp_path / "nothing", size=4)
    with pytest.raises(ValueError, match=r"has no pictures\. Put them into one sub-folder a class"):
        load(tmp_path, size=4)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "readme.md").write_text("hello")
    with pytest.raises(ValueError, match="has no pictures"):
        load(tmp_path, size=4)
    with pytest.raises(ValueError, match="neither a picture nor a table"):
        load(tmp_path / "a" / "readme.md", size=4)
    with pytest.raises(FileNotFoundError, match=r"no folder user/name.*hub gives no data set.*no way"):
        load("user/name", size=4)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no file or folder a/typo\."):
        load("a/typo", size=4)
    with pytest.raises(ValueError, match="hub gives no data set 'name'"):
        load("hub:name", size=4)


def test_only_bad_pictures_name_the_first_three_reasons(tmp_path: Path):
    for name in "abcd":
        (tmp_path / f"{name}.png").touch()
    with pytest.raises(ValueError, match=r"none of the 4 pictures .*a\.png: .*; b\.png: .*; c\.png: ") as error:
        load(tmp_path, size=4)
    assert "d.png" not in str(error.value)


def test_ready_made_splits_are_recognised(tmp_path: Path):
    fill(tmp_path / "train", ant=3, bee=2, cat=1)
    fill(tmp_path / "val", ant=1, cat=2)
    fill(tmp_path / "test", ant=5)
    train, test = load_splits(tmp_path, size=4)
    assert train.classes == test.classes == ("ant", "bee", "cat")
    assert (train.labels, test.labels) == ((0, 0, 0, 1, 1, 2), (0, 2, 2))
    assert load(tmp_path, size=4).names == train.names
    fill(tmp_path / "val", dog=1)
    with pytest.raises(ValueError, match="held-out part has classes that the training part lacks: dog"):
        load_splits(tmp_path, size=4)
    for file in (tmp_path / "val").rglob("*.png"):
        file.rename(tmp_path / "val" / f"{file.parent.name}{file.name}")
    with pytest.raises(ValueError, match=r"held-out part of .* has no labels"):
        load_splits(tmp_path, size=4)


def test_a_class_that_is_called_train_is_a_class(tmp_path: Path):
    assert load(fill(tmp_path, train=1, bus=1), size=4).classes == ("bus", "train")
    train, test = load_splits(fill(tmp_path, train=4, bus=8), size=4)
    assert (len(train), len(test)) == (9, 3)


@pytest.mark.parametrize(
    ("name", "path", "label", "separator"),
    [("t.csv", "path", "label", ","), ("t.csv", "File_Name", "Target", ";"), ("t.tsv", "image", "class", "\t")],
)
def test_a_table_of_text(tmp_path: Path, name: str, path: str, label: str, separator: str):
    fill(tmp_path / "p", x=3)
    rows = [f"{path}{separator}{label}{separator}more"]
    rows += [f"p/x/{number:03d}.png{separator}{kind}{separator}0" for number, kind in enumerate(["NA", "10", "9"])]
    rows += [f"{separator}10{separator}0", f"p/x/000.png{separator}{separator}0", f"gone.png{separator}9{separator}0"]
    (tmp_path / name).write_text("\n".join(rows), encoding="utf-8-sig")
    pictures = load(tmp_path / name, size=4)
    assert pictures.classes == ("10", "9", "NA")
    assert pictures.labels == (2, 0, 1)
    assert shades(pictures) == [0, 1, 2]
    assert [line.split(":")[0] for line in pictures.skipped] == ["row 4", "p/x/000.png", "gone.png"]
    assert pictures.skipped[1].endswith("no label")


def test_a_parquet_table_with_paths_or_with_bytes(tmp_path: Path):
    fill(tmp_path, a=2)
    labels = pandas.array([10, None, 9], dtype="Int64")
    paths = ["a/000.png", "a/001.png", str(tmp_path / "a" / "001.png")]
    pandas.DataFrame({"file": paths, "class": labels}).to_parquet(tmp_path / "paths.parquet")
    pictures = load(tmp_path / "paths.parquet", size=4)
    assert (pictures.classes, pictures.labels, shades(pictures)) == (("9", "10"), (1, 0), [0, 1])
    content = [{"bytes": (tmp_path / path).read_bytes(), "path": None} for path in paths]
    pandas.DataFrame({"image": content, "target": [0.0, 1.0, 1.0]}).to_parquet(tmp_path / "bytes.parquet")
    pictures = load(tmp_path / "bytes.parquet", size=4)
    assert (pictures.classes, pictures.labels, pictures.names[2]) == (("0", "1"), (0, 1, 1), "row 3")
    assert shades(pictures) == [0, 1, 1]


def test_columns_can_be_named_and_missing_ones_are_listed(tmp_path: Path):
    fill(tmp_path, a=1)
    file = tmp_path / "t.csv"
    file.write_text("where,what\na/000.png,good\n")
    assert load(file, size=4, path_column="where", label_column="what").classes == ("good",)
    assert load(file, size=4, path_column="where", label_column="").labels == (-1,)
    with pytest.raises(ValueError, match=r"no path column found.*the columns are: where, what.*path_column"):
        load(file, size=4)
    with pytest.raises(ValueError, match=r"no label column found.*label, class, target.*where, what"):
        load(file, size=4, path_column="where")
    with pytest.raises(ValueError, match="no label column 'x'; the columns are: where, what"):
        load(file, size=4, path_column="where", label_column="x")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "no readable table"),
        ("a.csv", b"path,label\n", "has no rows"),
        ("a.csv", b"path,label\n\xff\xfe,1\n", "no readable table"),
        ("a.parquet", b"PAR1 broken", "no readable table"),
        ("a.parquet", b"", "no readable table"),
    ],
)
def test_damaged_tables(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / name, size=4)


def test_a_missing_package_is_named_with_its_repair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "t.csv").write_text("path,label\na.png,1\n")
    for module, source in (("pandas", tmp_path / "t.csv"), ("datasets", "hub:name")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=rf"needs {module}.*pip install 'nestor\[data\]'"):
            load(source, size=4)


def rows(count: int = 4) -> datasets.Dataset:
    features = datasets.Features({"label": datasets.ClassLabel(names=["no", "yes", "never"]), "img": datasets.Image()})
    labels = [index % 2 for index in range(count)]
    return datasets.Dataset.from_dict({"img": [grey(index) for index in range(count)], "label": labels}, features)


def test_a_dataset_object_and_its_saved_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = rows()
    data.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": data, "test": rows(2)}).save_to_disk(tmp_path / "both")
    monkeypatch.setattr(datasets, "load_dataset", {"some/name": data, "name": data}.__getitem__)
    for source in (data, data.with_format("torch"), tmp_path / "saved", tmp_path / "both", "some/name", "hub:name"):
        pictures = load(source, size=4)
        assert pictures.classes == ("no", "yes", "never")
        assert (pictures.labels, shades(pictures)) == ((0, 1, 0, 1), [0, 1, 2, 3])
    train, test = load_splits(tmp_path / "both", size=4)
    assert (len(train), len(test), test.classes) == (4, 2, train.classes)
    train, test = load_splits(data, size=4, fraction=0.5)
    assert sorted(train.names + test.names) == ["0", "1", "2", "3"]


def test_a_dataset_with_plain_columns(tmp_path: Path):
    fill(tmp_path, a=1)
    buffer = io.BytesIO()
    grey(7).save(buffer, "PNG")
    paths = datasets.Dataset.from_dict({"path": [str(tmp_path / "a" / "000.png"), "gone.png"], "class": ["x", "y"]})
    assert (load(paths, size=4).labels, len(load(paths, size=4).skipped)) == ((0,), 1)
    content = datasets.Dataset.from_dict({"image": [buffer.getvalue(), b"junk"], "other": [1, 2]})
    pictures = load(content, size=4, label_column="")
    assert (shades(pictures), pictures.labels, pictures.names) == ([7], (-1,), ("0",))
    with pytest.raises(ValueError, match=r"no label column found.*image, other"):
        load(content, size=4)
    numbers = datasets.Dataset.from_dict({"image": [1, 2], "label": [1, 2]})
    with pytest.raises(ValueError, match="holds no picture here but int"):
        load(numbers, size=4)


def test_data_sets_that_cannot_be_used(tmp_path: Path):
    with pytest.raises(ValueError, match="no rows"):
        load(rows(4).select([]), size=4)
    with pytest.raises(ValueError, match="one part must be called train; got a, b"):
        load(datasets.DatasetDict({"a": rows(), "b": rows()}), size=4)
    assert len(load(datasets.DatasetDict({"a": rows()}), size=4)) == 4
    with pytest.raises(ValueError, match="map-style data set; got IterableDataset"):
        load(rows().to_iterable_dataset(), size=4)  # pyright: ignore[reportArgumentType]
    rows().save_to_disk(tmp_path)
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(ValueError, match="no readable saved data set"):
        load(tmp_path, size=4)


def test_normalisation_is_that_of_each_channel(tmp_path: Path):
    Image.new("RGB", (5, 5), (255, 0, 51)).save(tmp_path / "x.png")
    image, _ = load(tmp_path, size=2, mean=(0.5, 0.5, 0.0), std=(0.5, 0.25, 0.1))[0]
    np.testing.assert_allclose(image[:, 1, 1].numpy(), [1.0, -2.0, 2.0], rtol=1e-6)
