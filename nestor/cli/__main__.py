"""`python -m nestor.cli`, which `accelerate launch -m` and `torchrun -m` need."""

from nestor.cli import main

main()
