"""What the command returns, and the words for it that end every help text."""

DONE, TOO_MANY_FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130

EXIT_CODES = """\
exit codes:
  0    done
  1    finished, but a larger share of rows failed than limits.max_failed_fraction allows
       (compile and plan: it does not fit)
  2    the command, the job, the model, the input or the output cannot be used, or the run broke off
  130  interrupted by Ctrl-C
Finished shards are never lost: after 2 and 130 the same command goes on where it stopped.
"""
