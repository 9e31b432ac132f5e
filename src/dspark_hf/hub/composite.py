"""DSparkForCausalLM: a target and its drafter from one repository.

Its root is the target's checkpoint, or only names it (`base_model_name_or_path` in config.json); `dspark/` holds the
drafter in the flat layout. Releases of DeepSeek-V4 hold both in one checkpoint.
"""

import functools
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from dspark_hf.files import copy_files, follow_umask, read_json, write_json
from dspark_hf.generation import attach_drafter, detach_drafter
from dspark_hf.publishing import CardFacts, push_folder
from dspark_hf.publishing.cards.facts import known_repo
from dspark_hf.publishing.contents import SUBFOLDER
from dspark_hf.publishing.hub_errors import explained_load

from .deepseek_v4 import tells_of_stages
from .load import HUB_ARGUMENTS, AutoDrafter
from .trust import check_named, trusting

_BASE, _BASE_REVISION = "base_model_name_or_path", "base_model_revision"


class DSparkForCausalLM:
    """A causal language model that carries its drafter: `generate()` uses it without being told to.

    It is the target itself, of a class of its own that also knows these methods: parameters, state dict and everything
    else that the target can do are as they were. The drafter is `model.drafter`.

    Example:

    ```python
    model = DSparkForCausalLM.from_pretrained("org/Model-DSpark", dtype="bfloat16", device_map="auto")
    model.generate(**inputs, max_new_tokens=128)
    target, drafter = model, model.detach_drafter()
    ```

    Raises:
        `ValueError`: If it is instantiated.
    """

    def __init__(self):
        raise ValueError(
            "DSparkForCausalLM is not instantiated; use DSparkForCausalLM.from_pretrained(repo_or_dir), or "
            "DSparkForCausalLM.from_parts(target, drafter)."
        )

    @classmethod
    def from_pretrained(
        cls, repo_or_dir: str | os.PathLike, *, target: str | None = None, **kwargs: Any
    ) -> "DSparkForCausalLM":
        """Load a target and its drafter.

        Args:
            repo_or_dir (`str` or `os.PathLike`): A composite repository or a folder, or a release of DeepSeek-V4 with
                its drafter inside.
            target (`str`, *optional*): The repository that the composite one names as its target, where you name it
                too: `trust_remote_code` then holds for its code.
            kwargs: As for [`~transformers.AutoModelForCausalLM.from_pretrained`]: `dtype`, `device_map`, `revision`,
                `subfolder`, `token`, `local_files_only`, ... `revision` and `subfolder` are the composite's; a target
                that it only names is loaded at the revision that it names. `dtype` holds for both models.
                `trust_remote_code` holds for the code of `repo_or_dir` and of `target`.

        Returns:
            [`DSparkForCausalLM`]: In evaluation mode.

        Raises:
            `ValueError`: If there is no drafter, the two do not fit, `target` is not the one that is named or held, a
                repository names a folder of this machine, or code of a repository that you did not name would run.
        """
        repo_or_dir, hub = str(repo_or_dir), {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        root = kwargs.get("subfolder") or ""
        # The small one first: what is missing or does not fit is told before the target is fetched.
        options = hub | {name: kwargs[name] for name in ("dtype",) if name in kwargs}
        drafter = AutoDrafter.from_pretrained(
            repo_or_dir, subfolder=_drafter_folder(repo_or_dir, root, hub), **options
        )
        config = _root_config(repo_or_dir, root, hub)
        base, base_revision = config.get(_BASE), config.get(_BASE_REVISION)
        if base is not None:
            check_named(base, repo_or_dir, target)
            kwargs = {name: value for name, value in kwargs.items() if name not in ("revision", "subfolder")}
            kwargs["revision"] = base_revision or "main"
        # Whose code may run is told by that name, too.
        elif target not in (None, repo_or_dir) and not kwargs.get("trust_remote_code"):
            raise ValueError(
                f"{repo_or_dir} holds the weights of its target and names no other, got target={target!r}. Leave it "
                "out, or join that target with AutoDrafter.from_pretrained and attach_drafter."
            )
        named = (repo_or_dir, target)
        with explained_load(base or repo_or_dir), trusting(named, base or repo_or_dir, config, kwargs) as arguments:
            model = AutoModelForCausalLM.from_pretrained(base or repo_or_dir, **arguments)
        model = cls.from_parts(model, drafter)
        model._named_target = None if base is None else (base, base_revision)
        return model

    @classmethod
    def from_parts(cls, target: PreTrainedModel, drafter: Any) -> "DSparkForCausalLM":
        """Join two models that are in memory.

        Args:
            target (`PreTrainedModel`): The target; this very object is returned.
            drafter ([`DSparkModel`]): The drafter, moved to the target's device.

        Returns:
            [`DSparkForCausalLM`]: The target, with its drafter attached.

        Raises:
            `ValueError`: If the two do not fit.
        """
        if isinstance(target, DSparkForCausalLM):
            target.detach_drafter()
        # What lies in one repository, or is joined by hand, belongs together, whatever it is called.
        attach_drafter(target, drafter.to(target.device), check_target=False)
        target.__class__ = _composite_class(type(target))
        target._named_target = None
        return target

    def detach_drafter(self) -> Any:
        """Take the drafter away. The model is the plain target afterwards, of its own class.

        Returns:
            [`DSparkModel`]: The drafter.
        """
        return detach_drafter(self)

    def become_plain_target(self) -> None:
        """Be of the target's own class again, when the drafter has left."""
        del self._named_target
        self.__class__ = type(self).target_class

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *,
        include_target: bool | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save target and drafter as one folder.

        Args:
            save_directory (`str` or `os.PathLike`): The folder.
            include_target (`bool`, *optional*): Whether the target's weights are saved too, or only its name. By
                default as it was loaded; with weights, if it was joined in memory.
            tokenizer (`PreTrainedTokenizerBase`, *optional*): Saved beside them, with the file that renders its chats.
            push_to_hub (`bool`, *optional*, defaults to `False`): Refused; [`DSparkForCausalLM.push_to_hub`] does it.
            kwargs: As for [`~transformers.PreTrainedModel.save_pretrained`] of the target.

        Raises:
            `ValueError`: If the target is only to be named and has no name.
        """
        if push_to_hub:
            raise ValueError("save_pretrained(push_to_hub=True) is not supported: call model.push_to_hub(repo_id).")
        folder = Path(save_directory)
        if self._includes_target(include_target):
            super().save_pretrained(folder, **kwargs)
            if kwargs.get("is_main_process", True):
                follow_umask(folder)
        else:
            save_reference(folder, self.config, *(self._named_target or (self.name_or_path, None)))
        shard_size = {name: kwargs[name] for name in ("max_shard_size",) if name in kwargs}
        if kwargs.get("is_main_process", True):
            self.drafter.save_pretrained(folder / SUBFOLDER, **shard_size)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
                if (file := getattr(tokenizer, "encoding_file", None)) is not None:
                    path = Path(file.path)
                    copy_files(path.parents[1], [path.relative_to(path.parents[1])], folder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        include_target: bool | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_shard_size: int | str = "50GB",
        tags: list[str] | None = None,
        **options: Any,
    ) -> CommitInfo:
        """Upload target and drafter with a card, in one commit.

        Args:
            repo_id (`str`): The repository, made where there is none.
            include_target, tokenizer: See [`DSparkForCausalLM.save_pretrained`].
            max_shard_size (`int` or `str`, *optional*, defaults to `"50GB"`): Largest file of weights.
            tags (`list[str]`, *optional*): Tags besides the usual ones.
            options: `commit_message`, `commit_description`, `private`, `token`, `revision`, `create_pr`; see
                [`~publishing.push_folder`].

        Returns:
            `CommitInfo`: With `commit_url` and `oid`.

        Raises:
            `ValueError`: If the Hub refuses, or a target that is only named is a folder of this machine.
        """
        has_target = self._includes_target(include_target)
        base = (self._named_target or (self.name_or_path, None))[0]
        if not has_target and known_repo(base) is None:
            raise ValueError(
                f"The target {base!r} is no Hub repository that others could load. Push it along with "
                "include_target=True, or load it from its repository first."
            )
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, include_target=has_target, tokenizer=tokenizer, max_shard_size=max_shard_size)
            facts = CardFacts(
                repo_id, known_repo(base), tags=tuple(tags or ()), subfolder=SUBFOLDER, has_target=has_target
            )
            return push_folder(
                folder, repo_id, facts=facts, **{"commit_message": "Upload target and drafter", **options}
            )

    def _includes_target(self, wish: bool | None) -> bool:
        return self._named_target is None if wish is None else wish

    def __reduce__(self):
        # Pickle finds classes by name, and that of this one is the target's.
        return _blank, (type(self).target_class,), self.__dict__


def save_reference(folder: str | os.PathLike, config: Any, base: str, revision: str | None = None) -> None:
    """Write the root of a composite folder that only names its target.

    Args:
        folder (`str` or `os.PathLike`): The folder.
        config (`PreTrainedConfig`): The target's.
        base (`str`): The target's repository or folder.
        revision (`str`, *optional*): Its revision.

    Raises:
        `ValueError`: If the target has no name.
    """
    if not base:
        raise ValueError(
            "The target was made in memory and has no name to refer to: save it along with include_target=True."
        )
    named = {_BASE: base} | ({_BASE_REVISION: revision} if revision else {})
    write_json(Path(folder) / "config.json", json.loads(config.to_json_string()) | named)


def _drafter_folder(repo_or_dir: str, root: str, hub: dict[str, Any]) -> str:
    """Where the drafter is: `dspark/`, unless the root's own checkpoint holds it."""
    options = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False, **hub}
    folder = _join(root, SUBFOLDER)
    try:
        path = cached_file(repo_or_dir, _join(root, "config.json"), **options)
        # Without stages, whoever reads a release says so.
        raw = {} if path is None else read_json(path)
        is_inside = tells_of_stages(raw) or raw.get("model_type") in ("deepseek_v4", "deepseek_v41")
        is_inside = is_inside and cached_file(repo_or_dir, _join(folder, "config.json"), **options) is None
    except OSError:
        # Whoever reads the drafter says what is wrong.
        return folder
    return root if is_inside else folder


def _root_config(repo_or_dir: str, root: str, hub: dict[str, Any]) -> dict[str, Any]:
    path = cached_file(repo_or_dir, _join(root, "config.json"), _raise_exceptions_for_missing_entries=False, **hub)
    if path is None:
        raise ValueError(
            f"There is no config.json in {' / '.join(filter(None, (repo_or_dir, root)))}: it has a drafter in "
            f"{SUBFOLDER}/, but no target. Load the drafter alone: AutoDrafter.from_pretrained(repo, "
            f"subfolder={SUBFOLDER!r})."
        )
    return read_json(path)


def _join(*parts: str) -> str:
    return "/".join(part.strip("/") for part in parts if part)


@functools.cache
def _composite_class(target_class: type) -> type:
    # Saving writes the class's name into config.json, and messages show it: it stays the target's.
    names = {"__module__": target_class.__module__, "__doc__": target_class.__doc__, "target_class": target_class}
    return type(target_class.__name__, (DSparkForCausalLM, target_class), names)


def _blank(target_class: type) -> Any:
    composite = _composite_class(target_class)
    return composite.__new__(composite)
