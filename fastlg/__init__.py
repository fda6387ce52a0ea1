"""fastlg: vision transformers on tiny datasets, guided by a small frozen CNN (arXiv 2207.10026).

Nothing heavy is imported here; ``fastlg --help`` stays quick.
"""

__version__ = "0.1.0"
