"""``python -m fastlg`` is the command ``fastlg``."""

from fastlg.cli import main

if __name__ == "__main__":
    main()
