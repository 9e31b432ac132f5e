"""`python -m dspark_hf`: the `dspark` command, as `torchrun` and `accelerate launch` start it."""

from dspark_hf.cli.main import app

app(prog_name="dspark")
