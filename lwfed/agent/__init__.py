"""A client's process that stays: it reads what its runs want from the store, trains, commits, and waits.

It opens no port: it only talks to the store. Its policy is its own, and no task can widen it.
"""
