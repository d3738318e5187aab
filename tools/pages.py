"Pages of the site that are made from data and code."


def generated(names): return {}
