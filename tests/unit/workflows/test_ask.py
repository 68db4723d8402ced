"""What `mmsearch ask` answers at once, in a sentence, without starting anything."""

import io
import sys
from pathlib import Path

import pytest
from PIL import Image

from actors.model import images
from workflows import cli


@pytest.fixture
def ask(monkeypatch, capsys, tmp_path):
    def call(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["mmsearch", "ask", *words, f"run.storage={tmp_path / 'run'}"])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert left.value.code == 2
        said = capsys.readouterr().err
        assert said.startswith("mmsearch: ")
        assert said.count("\n") == 1
        return said

    return call


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "picture.png"
    Image.new("RGB", (64, 64), "red").save(path)
    return path


def test_a_run_without_a_model_names_the_command_that_makes_one(ask, picture):
    said = ask("--image", str(picture), "what is it?")
    assert "has no trained model yet: run `mmsearch demo`" in said
    assert "run `mmsearch demo` or `mmsearch sft` first" in ask("what is it?", "--checkpoint", "sft")


def test_a_checkpoint_that_is_none_is_refused(ask, tmp_path):
    assert "There is no model at" in ask("what?", "--checkpoint", str(tmp_path / "nowhere"))
    broken = tmp_path / "model"
    broken.mkdir()
    (broken / "config.json").write_text('{"architectures": ["Other"]}')
    assert "this project runs Qwen2_5_VLForConditionalGeneration" in ask("what?", "--checkpoint", str(broken))


def test_a_picture_that_is_none_or_cut_off_is_refused(ask, tmp_path, picture):
    text = tmp_path / "text.png"
    text.write_text("no picture")
    assert f"{text} cannot be used: this is no image of a known kind" in ask("--image", str(text), "what?")
    noise = io.BytesIO()
    Image.effect_noise((300, 300), 90).save(noise, "PNG")
    picture.write_bytes(noise.getvalue()[:-4000])
    assert f"{picture} cannot be used" in ask("--image", str(picture), "what?")


def test_a_picture_that_is_too_large_is_refused_unread(ask, tmp_path):
    huge = tmp_path / "huge.png"
    with huge.open("wb") as stream:
        stream.truncate(images.MAX_BYTES + 100)
    assert "over the limit of" in ask("--image", str(huge), "what?")


def test_a_folder_is_no_picture(ask, tmp_path):
    assert "There is no picture at" in ask("--image", str(tmp_path), "what?")


def test_nothing_to_ask_is_a_sentence_with_an_example(ask):
    assert "--example 0" in ask("--checkpoint", "sft", " ")


def test_an_example_without_a_dataset_and_one_with_a_question_are_refused(ask):
    assert "there are no questions at" in ask("--example", "0")
    assert "brings its own question" in ask("--example", "0", "what?")
