"""Why a drafter's drafts are not accepted."""
