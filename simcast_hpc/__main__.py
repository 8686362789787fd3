"""``python -m simcast_hpc`` is ``simcast``: so torchrun -m, deepspeed --module and srun python -m work."""

from simcast_hpc.cli import main

if __name__ == "__main__":
    main()
