"""How fast each stage is, against what this machine can do and against what a user would otherwise write.

``options`` says what to measure. ``material`` makes or opens the data, and ``run`` goes through the stages: those of
``stages`` compute in one process, those of ``whole_jobs`` start jobs as a user does (``processes``). ``ceilings``,
``peers`` and ``crop_script`` are what they are compared with, ``timing`` measures in turn, and ``report`` shows the
result.
"""
