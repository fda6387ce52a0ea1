"""What the project measures of itself. Run from a checkout: ``fastlg bench``, or a file that says how by its path.

    run.py, speedrun.py, gpu_stages.py    whole runs
    harness/    what measurements share: turns, rows and their stamp, counts, reports, plots, the rival
    cases/      what is measured: kernels/, input/, training/ and what surrounds it
    scaling/    one process and several, measured and modelled
    results/    what was measured, with commit, device and versions

Only this folder is a package: a file that is run by its path puts the repository's root in the place of its own folder
on ``sys.path``, so that no name here hides an installed package.
"""
