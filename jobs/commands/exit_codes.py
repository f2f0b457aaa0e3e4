"""What the command returns, and the words for it that end every help text."""

DONE, TOO_MANY_FAILED, REFUSED, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143

EXIT_CODES = """\
exit codes:
  0    done
  1    finished, but a larger share of rows failed than limits.max_failed_fraction allows
       (compile and plan: it does not fit)
  2    the command, the job, the model, the input or the output cannot be used, or the run broke off
  130  interrupted by Ctrl-C
  143  ended by SIGTERM, as when the machine is taken away
Finished shards are never lost: after 2, 130 and 143 the same command goes on where it stopped.
"""
