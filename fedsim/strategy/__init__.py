"""What a method is: the server's hooks, the clients' rule, and what travels between them."""

from fedsim import lazy

__getattr__, __all__ = lazy.attach(__name__, __file__)
