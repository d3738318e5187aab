"What the adapters of other implementations share."
from sagan_nb.speed import NETS, PLAIN, bench_networks


def check_weights(res, G, D):
    "Raise ValueError unless both networks have as many weights as ours of the bench."
    def count(nets): return [sum(p.numel() for p in net.parameters()) for net in nets]
    theirs, ours = count((G, D)), count(bench_networks(NETS[str(res)], PLAIN))
    if theirs != ours: raise ValueError(f'its networks have {theirs} weights, ours {ours}')
