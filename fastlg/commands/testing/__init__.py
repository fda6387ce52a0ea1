"""What ``fastlg eval`` finds out: answers, calibration, classes, corruptions, and one run against another."""
