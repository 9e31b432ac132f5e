"""With which commands other engines serve a target with its drafter."""

from pathlib import Path

from dspark_hf.cli.convert import drafter_folder


def engine_commands(target: str, drafter: str | None, *, vllm: bool, sglang: bool) -> list[str]:
    """Commands of the engines that were asked for, once their demands on the checkpoint are met.

    Args:
        target (`str`): A repository, a folder, or `embedded`.
        drafter (`str`, *optional*): The drafter's; without it `target` holds both, or is `embedded`.
        vllm, sglang (`bool`): Which engines.

    Returns:
        `list[str]`.

    Raises:
        `ValueError`: If an engine does not load the checkpoint.
    """
    from dspark_hf.files import read_json
    from dspark_hf.hub.embedded import EMBEDDED, resolve_drafter, resolve_target
    from dspark_hf.publishing.cards.serving import serving_commands
    from dspark_hf.publishing.contents import SUBFOLDER
    from dspark_hf.publishing.engines import Checkpoint

    drafter = EMBEDDED if drafter is None and target == EMBEDDED else drafter
    place = resolve_target(target)
    if drafter is None:
        root = drafter_folder(target, SUBFOLDER)
        config = Path(place) / "config.json"
        named = read_json(config).get("base_model_name_or_path") if config.is_file() else None
        found = serving_commands(Checkpoint.read(root), place, named or place, SUBFOLDER)
    else:
        root = drafter_folder(drafter)
        is_adapter = (root / "adapter_config.json").is_file()
        found = serving_commands(Checkpoint.read(root), resolve_drafter(drafter), place, is_adapter=is_adapter)
    asked = {"vLLM": vllm, "SGLang": sglang}
    commands = []
    for serving in found:
        if not asked[serving.engine]:
            continue
        if serving.command is None:
            raise ValueError(f"{serving.engine} will not serve this drafter: {'; '.join(serving.reasons)}.")
        commands.append(serving.command)
    return commands
