"""Train the miniature LLaVA: `python -m muwa.miniature.train_llava`."""

from muwa.miniature.train.llava import main

if __name__ == "__main__":
    main()
