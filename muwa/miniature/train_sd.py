"""Train the miniature Stable Diffusion: `python -m muwa.miniature.train_sd`."""

from muwa.miniature.train.sd import main

if __name__ == "__main__":
    main()
