"""What a process imports that is to have the head, once, for all that it forks."""

from people.head import load_head

load_head()
