"""metering: the ledger of usage.

Owns the ledger of usage events (every execution attempt once, corrections as rows of their own), the prices applied to them, the
usage streams and the sums. Does not own admission, budgets or counters (quota), nor the measuring of an attempt (worker).

A row is never edited. What an attempt is billed is the sum of its rows; what a tenant is billed is the sum of its rows.
Each commit holds the rows, their totals, the key that keeps an attempt from counting twice, and the next dense
position, or nothing.
"""
