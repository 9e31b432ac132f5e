"""A recipe is a file, and files come from anywhere: it cannot act for its author."""

import json
from pathlib import Path

import pytest
import yaml
from hub_server import STRANGER_TOKEN

from dspark_hf.trainers.recipes.recipe import Recipe, load_recipe


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder with a project in it, which is the working folder."""
    home = tmp_path / "people" / "me"
    (home / "project").mkdir(parents=True)
    (home / "thesis.txt").write_text("private")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home / "project")
    return home


@pytest.fixture
def write(home, tiny_target_dir):
    """`write(cache=None, **training)`: a recipe in the project, its path."""

    def make(cache=None, **training):
        conversation = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "abcdefgh"}]}
        Path("text.jsonl").write_text("\n".join([json.dumps(conversation)] * 6))
        content = {
            "target": tiny_target_dir,
            "data": ["text.jsonl"],
            "drafter": {"num_hidden_layers": 1, "block_size": 4, "markov_rank": 4},
            "training": {"output_dir": "runs/first", "max_steps": 1, "save_steps": 1, "report_to": "none",
                         "disable_tqdm": True, "num_eval_prompts": 0, **training},
        }  # fmt: skip
        Path("recipe.yaml").write_text(yaml.safe_dump(content | ({"cache": cache} if cache else {})))
        return Path("recipe.yaml")

    return make


@pytest.mark.parametrize("name", ["hub_token"])
def test_a_recipe_brings_no_token(dspark, hub, write, name):
    message = f"does not take tokens, but training.{name} is one: .*Log in with `hf auth login`, or set HF_TOKEN"
    for load in (
        lambda: load_recipe(write(**{name: STRANGER_TOKEN})),
        lambda: load_recipe(None, [f"{name}={STRANGER_TOKEN}"]),
        lambda: load_recipe(write(), [f"training={{output_dir: out, {name}: x}}"]),
        lambda: Recipe(training={name: STRANGER_TOKEN}),
    ):
        with pytest.raises(ValueError, match=message) as refused:
            load()
        assert STRANGER_TOKEN not in str(refused.value)
    # One on the command line does not make it right.
    outcome = dspark("train", "--config", write(push_to_hub=True, **{name: STRANGER_TOKEN}), f"{name}=null", "--yes")
    assert outcome.code == 2 and "does not take tokens" in outcome.err and not hub.requests


@pytest.mark.parametrize("key", ["output_dir", "cache_dir", "cache"])
@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        (".", "the working folder itself"),
        ("runs/..", "the working folder itself"),
        ("~", "a home folder"),
        ("..", "a home folder"),
        ("../..", "a home folder"),
        ("/", "a home folder"),
        ("../other", "outside the working folder"),
        ("~/.ssh", "outside the working folder"),
        ("/tmp/elsewhere", "outside the working folder"),
        ("link/run", "outside the working folder"),
    ],
)
def test_a_recipe_writes_inside_the_working_folder(write, home, key, folder, reason):
    Path("link").symlink_to(home)
    given = {key: folder} | ({"cache_budget": "1MB"} if key == "cache_dir" else {})
    path = write(**given)
    with pytest.raises(
        ValueError, match=f"{path} writes to .*{key}.*, which is {reason}.* on the command line: {key}="
    ):
        load_recipe(path)
    # Who runs it may say so.
    recipe = load_recipe(path, [f"{key}='{folder}'"])
    assert (recipe.cache if key == "cache" else recipe.training[key]) == folder
    assert load_recipe(write(**given | {key: "runs/second"})) is not None


def test_a_home_below_the_working_folder_is_a_home(write, home, monkeypatch):
    path = write(output_dir="me").resolve()
    monkeypatch.chdir(home.parent)
    with pytest.raises(ValueError, match="which is a home folder"):
        load_recipe(path)


@pytest.mark.parametrize("key", ["output_dir", "cache_dir", "cache"])
def test_odd_names_of_folders_end_in_no_other_error(write, home, key):
    budget = {"cache_budget": "1MB"} if key == "cache_dir" else {}
    # A user that nobody is: a folder of that name.
    assert load_recipe(write(**{key: "~nobody-is-called-so/run"} | budget)) is not None
    with pytest.raises(ValueError, match=r"writes to .a.x00b. .*which is no name of a folder"):
        load_recipe(write(**{key: "a\0b"} | budget))


@pytest.mark.parametrize(
    "hidden", [f"--hub_token={STRANGER_TOKEN}", "--output_dir=../..", "--push_to_hub", "-x", "--cache_dir=/tmp"]
)
@pytest.mark.parametrize("name", ["label_names", "report_to"])
def test_no_value_is_read_as_another_argument(write, name, hidden):
    recipe = load_recipe(write(**{name: ["none", hidden]}))
    with pytest.raises(ValueError, match=f"training.{name} holds .*no value begins with a dash there") as refused:
        recipe.training_arguments()
    assert STRANGER_TOKEN not in str(refused.value)


@pytest.mark.parametrize("key", ["output_dir", "cache_dir"])
@pytest.mark.parametrize("value", [[".."], {"a": ".."}, 7, False, [[".."]]], ids=str)
def test_folders_are_named_by_text(write, key, value):
    given = {key: value} | ({"cache_budget": "1MB"} if key == "cache_dir" else {})
    with pytest.raises(ValueError, match=f"training.{key} must be text, got "):
        load_recipe(write(**given))


def test_a_dot_opens_no_section_in_a_file(write):
    path = write()
    path.write_text(f"{path.read_text()}training.output_dir: ..\n")
    with pytest.raises(ValueError, match="unknown key 'training.output_dir'. What is behind a dot stands inside"):
        load_recipe(path)


def test_files_that_are_no_json_are_told_as_arguments(write, home):
    with pytest.raises(ValueError, match="A training argument of the recipe cannot be used") as caught:
        load_recipe(write(accelerator_config=str(home / "thesis.txt"))).training_arguments()
    assert type(caught.value) is ValueError and "private" not in str(caught.value)


def test_sections_are_sections_on_the_command_line_too(write):
    with pytest.raises(ValueError, match=r"the command line: drafter must hold keys and values, got \[1\]"):
        load_recipe(write(), ["drafter=[1]", "drafter.block_size=3"])
    path = write()
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**content, "drafter": {"family": ["x"]}}))
    assert load_recipe(path).drafter == {"family": ["x"]}  # what is no family is told where a drafter is made


@pytest.mark.parametrize("name", ["trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"])
def test_a_recipe_sends_figures_nowhere(write, name):
    path = write(**{name: "stranger/loot"})
    with pytest.raises(ValueError, match=f"sends figures to 'stranger/loot' .*{name}=stranger/loot"):
        load_recipe(path)
    assert load_recipe(path, [f"{name}=me/mine"]).training[name] == "me/mine"


def test_where_a_run_uploads_is_asked_first(dspark, hub, write, home, monkeypatch):
    path = write(push_to_hub=True, hub_model_id="org/loot", hub_private_repo=False)
    with monkeypatch.context() as patch:
        patch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)  # before any work
        outcome = dspark("train", "--config", path)
    assert outcome.code == 2 and not hub.requests
    assert "dspark train with push_to_hub uploads, and this is no terminal to ask at: add --yes" in outcome.err
    outcome = dspark("train", "--config", path, "--yes")
    assert outcome.code == 0, outcome.err
    assert "Uploads the drafter of runs/first (its own files, no text and no states) to org/loot (a new" in outcome.err
    assert "repository, public)" in outcome.err
    files = set(hub.files("org/loot")) - {".gitattributes"}
    assert files == {"README.md", "config.json", "model.safetensors", "training.json"}
    assert hub.files("org/loot")["README.md"] == Path("runs/first/README.md").read_bytes()


def test_who_is_not_logged_in_is_told_before_any_work(dspark, hub, write, monkeypatch):
    hub.log_in(monkeypatch, None)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)
    outcome = dspark("train", "--config", write(push_to_hub=True), "--yes")
    assert outcome.code == 2 and "No valid token was sent: run `hf auth login`" in outcome.err
