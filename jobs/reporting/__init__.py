"""`penstock report`: one page about one output, or about the partitions of a schedule.

outputs   which directories are meant          sampling  columns of the results, in bounded memory
facts     everything that is said of one       timeline  when which shard was open, how fast, how full
trend     one after the other, and drift       page      all of it as HTML
"""
