"""The commands of `penstock`, a module each, in the order in which help lists them.

A module has a NAME, a SUMMARY of half a line, a TEXT that teaches with examples, `add_options(parser)`, and
`handle(options)`, which returns the exit code. It imports what the work needs inside `handle`, so that help answers
at once. One that takes flags it does not list (they go to Beam) says PASSES_FLAGS = True and finds them in
`options.flags`; `options.line` is the whole command line, to be repeated to the user.
"""

from __future__ import annotations

from jobs.commands import (
    cancel_job,
    compile_phase,
    export,
    follow,
    measure_machine,
    merge,
    plan_job,
    report,
    run,
    run_due,
    schedule,
    schema,
    show,
    status,
    submit_job,
    validate,
)

COMMANDS = (
    run,
    submit_job,
    cancel_job,
    run_due,
    schedule,
    follow,
    validate,
    plan_job,
    status,
    show,
    report,
    export,
    merge,
    schema,
    compile_phase,
    measure_machine,
)
