"""What a trained student attends to, how far, and how much of its teacher it holds: ``fastlg analyze``."""
