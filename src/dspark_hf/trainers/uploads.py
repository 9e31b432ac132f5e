"""What a trainer sends to the Hub: a drafter's files, never the rest of its folder."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, run_as_future
from torch import Tensor
from transformers.trainer_utils import HubStrategy, TrainOutput
from transformers.utils import logging
from transformers.utils.hub import PushInProgress

from dspark_hf.files import copy_files, write_text
from dspark_hf.publishing import CardFacts, push_folder, write_card, write_training_record
from dspark_hf.publishing.cards.card import read_card
from dspark_hf.publishing.cards.facts import known_repo
from dspark_hf.publishing.contents import CARD, checkpoint_files, files_to_push, left_behind
from dspark_hf.publishing.hub_errors import explained_push
from dspark_hf.publishing.secrets import check_no_secrets

from .checkpoints import WholeCheckpoints

logger = logging.get_logger(__name__)
_LAST = "last-checkpoint"


class DrafterUploads(WholeCheckpoints):
    """A trainer whose uploads are those of [`~publishing.push_folder`].

    `hub_strategy` says when and what, as for [`~transformers.Trainer`]: with `checkpoint` and `all_checkpoints` the
    newest checkpoint goes to `last-checkpoint/`, or each to `checkpoint-N/`, in the same commit as the drafter. Such a
    folder has the drafter, the optimizer's, scheduler's and random states and `trainer_state.json`, so that training
    can be resumed from it; the sharded states of FSDP and DeepSpeed stay here.
    """

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """As [`~transformers.Trainer.init_hf_repo`]; `ValueError` where the Hub refuses or does not answer."""
        with explained_push(self.args.hub_model_id or Path(self.args.output_dir).absolute().name):
            super().init_hf_repo(token, private)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As [`~transformers.Trainer.train`]; with `push_to_hub`, what lies in the folder already is told apart first.

        Raises:
            `ValueError`: If a card in the folder is no text, or a file there that would be uploaded is a link or holds
                a secret.
        """
        folder = Path(self.args.output_dir)
        if (folder / CARD).is_file():
            read_card(folder / CARD)  # it is kept at the end, which would be late to hear that it cannot be read
        if self.args.push_to_hub and self.is_world_process_zero() and folder.is_dir():
            sent = files_to_push(folder, tokenizer=self._has_tokenizer)
            check_no_secrets({name: folder / name for name in sent}, self.args.hub_token)
            if others := left_behind(folder, sent):
                logger.warning(
                    f"{folder} holds other things than a drafter's. What goes to {self.hub_model_id} is the drafter "
                    f"(weights, configs, card, training.json{''.join(f', {name}' for name in sent)}); what stays "
                    f"here: {', '.join(others)}."
                )
        return super().train(*args, **kwargs)

    def push_to_hub(
        self,
        commit_message: str = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save the drafter and upload it with its card.

        Args:
            commit_message (`str`, *optional*, defaults to `"End of training"`): Words for the commit.
            blocking (`bool`, *optional*, defaults to `True`): Whether to wait for the end of the upload.
            token (`str`, *optional*): Token with the right to write; `args.hub_token` by default.
            revision (`str`, *optional*): The branch; `args.hub_revision` by default.
            private (`bool`, *optional*): Whether a new repository is private.
            kwargs: As for [`DrafterUploads.create_model_card`].

        Returns:
            `CommitInfo`, or a `Future` of it where `blocking=False`; None on every process but the main one.

        Raises:
            `ValueError`: If the Hub refuses or does not answer.
        """
        self.save_model(_internal_call=True)
        return self.push_saved(commit_message, blocking, token, revision, private, **kwargs)

    def push_saved(
        self,
        commit_message: str = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Upload the drafter as it lies in the output folder; arguments as of [`DrafterUploads.push_to_hub`]."""
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = self.args.hub_token if token is None else token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        self._finish_current_push()

        def push() -> CommitInfo:
            return push_folder(
                self.args.output_dir,
                self.hub_model_id,
                facts=self._facts(**kwargs),
                tokenizer=self._has_tokenizer,
                commit_message=commit_message,
                token=token,
                revision=revision or self.args.hub_revision,
            )

        return push() if blocking else run_as_future(push)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        args, is_busy = self.args, self.push_in_progress is not None and not self.push_in_progress.is_done()
        if not self.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
            return
        if is_busy and not args.hub_always_push:
            return
        self.callback_handler.on_push_begin(args, self.state, self.control)
        step, source = self.state.global_step, Path(checkpoint_folder)
        place = {HubStrategy.CHECKPOINT: _LAST, HubStrategy.ALL_CHECKPOINTS: source.name}.get(args.hub_strategy)
        failed = f"The drafter of step {step} was not uploaded; training goes on."
        try:
            copy = self._copied(source, place is not None)
        except (OSError, ValueError) as error:
            logger.warning(f"{failed} {error}")
            return

        def push() -> None:
            try:
                push_folder(
                    copy,
                    self.hub_model_id,
                    checkpoint=place,
                    tokenizer=self._has_tokenizer,
                    commit_message=f"Training in progress, step {step}",
                    token=args.hub_token,
                    revision=args.hub_revision,
                )
            except (OSError, ValueError) as error:
                logger.warning(f"{failed} {error}")
            finally:
                shutil.rmtree(copy, ignore_errors=True)

        jobs = [*(self.push_in_progress.jobs if is_busy else ()), run_as_future(push)]
        self.push_in_progress = PushInProgress(jobs)

    def _copied(self, source: Path, is_resumable: bool) -> Path:
        """A new folder with what is uploaded: the checkpoint may be rotated away before it has been sent."""
        copy = Path(tempfile.mkdtemp(prefix="dspark-upload-"))
        try:
            files = files_to_push(source, tokenizer=self._has_tokenizer)
            copy_files(source, {*files, *(checkpoint_files(source) if is_resumable else ())}, copy)
            self._write_record(copy)
        except BaseException:
            shutil.rmtree(copy, ignore_errors=True)
            raise
        return copy

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        card = Path(output_dir or self.args.output_dir) / CARD
        words = read_card(card) if card.is_file() else None
        super()._save(output_dir, state_dict)
        # PEFT leaves a template there, or writes into the card that there is.
        if self.args.should_save and words is not None:
            write_text(card, words)
        elif self.args.should_save:
            card.unlink(missing_ok=True)

    def create_model_card(
        self,
        license: str | None = None,
        tags: str | list[str] | None = None,
        finetuned_from: str | None = None,
        dataset: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        **unused: Any,
    ) -> None:
        """Write `training.json` and, unless somebody wrote it by hand, `README.md` into `output_dir`.

        Args:
            license (`str`, *optional*): The licence's identifier.
            tags (`str` or `list[str]`, *optional*): Tags besides the usual ones.
            finetuned_from (`str`, *optional*): The target's repository, if the drafter's config does not name it.
            dataset (`str` or `list[str]`, *optional*): What the training text is called.
            dataset_tags (`str` or `list[str]`, *optional*): Hub datasets of the training text.
            unused: What cards of drafters have no place for: `model_name`, `language`, `tasks`, `dataset_args`.
        """
        if not self.is_world_process_zero():
            return
        facts = self._facts(license, tags, finetuned_from, dataset_tags)
        self._write_record(self.args.output_dir, _as_list(dataset) or list(facts.datasets) or None)
        write_card(self.args.output_dir, facts)

    def _facts(
        self,
        license: str | None = None,
        tags: str | list[str] | None = None,
        finetuned_from: str | None = None,
        dataset_tags: str | list[str] | None = None,
        **unused: Any,
    ) -> CardFacts:
        datasets, tags = tuple(_as_list(dataset_tags)), tuple(_as_list(tags))
        return CardFacts(self.hub_model_id, known_repo(finetuned_from), license, datasets, tags)

    def _write_record(self, folder: str | Path, data: list[str] | None = None) -> None:
        known = {"sequences": len(self.train_dataset)} if hasattr(self.train_dataset, "__len__") else {}
        write_training_record(folder, arguments=self.args, data=data, steps=self.state.global_step, **known)

    @property
    def _has_tokenizer(self) -> bool:
        return self.processing_class is not None


def _as_list(names: str | list[str] | None) -> list[str]:
    return [names] if isinstance(names, str) else list(names or [])
