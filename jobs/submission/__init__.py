"""A job handed to a runner elsewhere: which settings it takes, what is sent, whether the runner is there, what became
of it.

    settings          the sections of the job file, one for each runner
    dataflow_machines which machine has a mesh's chips
    beam_flags        a job as Beam's flags
    reachable         whether workers elsewhere can read and write what the job names
    endpoints         whether the runner is there, in seconds
    dataflow_job      the whole request to Dataflow, built without a network
    dry_run           what would be sent, in words and as a file
    submit            a job from its file to a runner that has accepted it, or finished it
    record            who submitted what where: OUT/_submitted.json
    cancel            stop it, from its output alone
    worker            the worker program of PROCESS environments
"""
