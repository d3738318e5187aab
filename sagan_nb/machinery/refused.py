"Serves chapter 00: a fault that has a name, and a word that must be one of a few. Commands need it before torch."
import difflib


class Refused(ValueError):
    "An input that cannot be used, with a message that says why and what would do."


def choose(
    value,                    # what was asked for
    choices,                  # what there is; a dict stands for its keys
    what:str,                 # what it is called in the message
    write=str,                # how a choice is written in the message
):                            # the value itself
    "Return the value if it is one of the choices. Raises Refused otherwise, with the nearest, and all if they are few."
    if value in choices: return value
    every = f'choose one of {", ".join(map(write, choices))}'
    if not isinstance(value, str): raise Refused(f'{what} is {value!r}; {every}')
    hints = [f'did you mean {write(o)}?' for o in difflib.get_close_matches(value, choices, 1, cutoff=.5)]
    if not hints or len(choices) <= 12: hints.insert(0, every)
    raise Refused(f'there is no {what} {value!r}; {"; ".join(hints)}')
