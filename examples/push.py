"""Publish a drafter with a card: the licence, the target, and what was measured.

    python examples/push.py runs/first me/Model-drafter --base_model org/Model --evaluations runs/eval \
        --license apache-2.0
    python examples/push.py runs/first me/Model-drafter --dry_run

`--dry_run` prints the files that would go and the card, and sends nothing. `dspark push` does it, and asks first.
One process does it: there is nothing to `accelerate launch`.
"""

import argparse
from pathlib import Path

from dspark_hf.publishing import CardFacts, push_folder
from dspark_hf.publishing.evaluations import read_evaluation
from dspark_hf.publishing.push import preview


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="The drafter's folder, as save_pretrained or training wrote it.")
    parser.add_argument("repo_id", help="OWNER/NAME of the repository, made where there is none.")
    parser.add_argument("--base_model", help="The target's repository, if the drafter's config does not name it.")
    parser.add_argument("--license", help="The licence's identifier, e.g. apache-2.0.")
    parser.add_argument("--evaluations", nargs="*", default=[], type=Path, help="Folders of evaluations.")
    parser.add_argument("--private", action="store_true", help="Make a new repository private.")
    parser.add_argument("--dry_run", action="store_true", help="Show the files and the card, and send nothing.")
    options = parser.parse_args()

    facts = CardFacts(repo_id=options.repo_id, base_model=options.base_model, license=options.license)
    name = options.folder.resolve().name
    evaluations = {run.name: read_evaluation(run, name) for run in options.evaluations}
    if options.dry_run:
        files, card = preview(options.folder, facts, evaluations=evaluations)
        print("\n".join(sorted(files)), card, sep="\n\n")
        return
    commit = push_folder(
        options.folder, options.repo_id, facts=facts, evaluations=evaluations, private=options.private or None
    )
    print(commit.commit_url)


if __name__ == "__main__":
    main()
