"""One reader of YAML files: whatever is wrong with a file is one line with its name, the line and a fix."""

from pathlib import Path

import pytest
import yaml

from slm_ray.errors import ConfigError
from slm_ray.yaml_file import parse_yaml, read_yaml, read_yaml_mapping

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: 1\nb: [", "f.yaml:2: not YAML ("),
        (b"a: 1\nb: 2\na: 3\n", "f.yaml:3: not YAML (the key 'a' stands in line 1 too)"),
        (b"top:\n  a: 1\n  a: 1\n", "f.yaml:3: not YAML (the key 'a' stands in line 2 too)"),
        (b"a: 1\nb: \xff\n", "f.yaml:2: not UTF-8 text; save the file as UTF-8"),
        (b"a: \x01\n", "f.yaml: not YAML ("),
        (b"a: 2026-99-99\n", "f.yaml: not YAML (month must be in 1..12)"),
        (b"[" * 5000, "f.yaml: not YAML ("),
        (b"a: !!python/object:os.system {}\n", "f.yaml:1: not YAML ("),
        (b"? [a]\n: 1\n", "f.yaml:1: not YAML ("),
        (b" \n", "f.yaml is empty"),
    ],
)
def test_a_broken_file_is_one_line_with_its_place(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "f.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path, what="prices")
    assert said in str(caught.value) and str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.yaml", ".", "a\0b"])
def test_a_file_that_cannot_be_read_is_named_with_its_kind(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"^cannot read the prices .*; give the path of a YAML file$"):
        read_yaml(str(tmp_path / name), what="prices")


def test_what_has_to_be_a_mapping_is_one(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_bytes(b"\xef\xbb\xbfbase: &base {a: 1, b: 2}\nchild: {<<: *base, b: 3}\n")  # with a byte-order mark
    assert read_yaml_mapping(path, what="track")["child"] == {"a": 1, "b": 3}
    path.write_text("- a\n")
    with pytest.raises(ConfigError, match="a track is a mapping of keys to values, not list"):
        read_yaml_mapping(path, what="track")


def test_text_is_parsed_as_files_are() -> None:
    assert parse_yaml("{CPU: 1}") == {"CPU": 1}
    with pytest.raises(yaml.YAMLError):
        parse_yaml("{a: 1, a: 2}")


def test_every_file_of_the_repository_is_read() -> None:
    files = [path for folder in ("jobs", "data", "serve_configs") for path in (ROOT / folder).rglob("*.yaml")]
    assert len(files) > 15
    for path in files:
        assert read_yaml_mapping(path, what="file")


def test_no_other_module_reads_yaml() -> None:
    for path in [*(ROOT / "slm_ray").rglob("*.py"), *(ROOT / "jobs").glob("*.py")]:
        if path.name != "yaml_file.py":
            text = path.read_text(encoding="utf-8")
            assert "yaml.safe_load" not in text and "yaml.load" not in text, f"{path}: read YAML with slm_ray.yaml_file"
