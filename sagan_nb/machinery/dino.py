"Serves chapter 10: the vision transformer of DINOv2, under the names of its published weights. No code is fetched."
import torch
import torch.nn.functional as F
from torch import Tensor, nn

DINO_URL = 'https://dl.fbaipublicfiles.com/dinov2/dinov2_vit{0}14/dinov2_vit{0}14_pretrain.pth'
DINO_SHA256 = dict(           # no hash is published with the files; these are what others find in them
    b='0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73',
    s='b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9',
    l='d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428')


class DinoBlock(nn.Module):
    "Attention, then two layers, each scaled per channel and added to what came in."
    def __init__(self,
        width:int,                # channels, a multiple of 64: heads have 64
        hidden:int,               # channels between the two layers
    ):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict(dict(qkv=nn.Linear(width, 3*width), proj=nn.Linear(width, width)))
        self.mlp = nn.ModuleDict(dict(fc1=nn.Linear(width, hidden), fc2=nn.Linear(hidden, width)))
        self.ls1, self.ls2 = (nn.ParameterDict(dict(gamma=torch.ones(width))) for _ in range(2))

    def forward(self, x:Tensor)->Tensor:        # (B, N, width), the same
        "Mix tokens, then channels."
        q, k, v = self.attn['qkv'](self.norm1(x)).unflatten(2, (3, -1, 64)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.ls1['gamma']*self.attn['proj'](mixed)
        return x + self.ls2['gamma']*self.mlp['fc2'](F.gelu(self.mlp['fc1'](self.norm2(x))))


class Dino(nn.Module):
    "A vision transformer whose sizes are those of its weights."
    def __init__(self,
        state:dict,               # published weights of DINOv2 without registers, S, B or L
    ):
        super().__init__()
        width, _, patch, _ = state['patch_embed.proj.weight'].shape
        depth = 1 + max(int(name.split('.')[1]) for name in state if name.startswith('blocks.'))
        self.patch_embed = nn.ModuleDict(dict(proj=nn.Conv2d(3, width, patch, patch)))
        self.cls_token, self.mask_token = nn.Parameter(torch.empty(1, 1, width)), nn.Parameter(torch.empty(1, width))
        self.pos_embed = nn.Parameter(torch.empty_like(state['pos_embed']))
        hidden = len(state['blocks.0.mlp.fc1.bias'])
        self.blocks = nn.Sequential(*[DinoBlock(width, hidden) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.load_state_dict(state)

    def places(self, side:int)->Tensor:         # patches in a row -> (1, 1 + side*side, width)
        "Resize the table of places as the original does: bicubic, by a factor with a tenth of a patch too much."
        first, rest = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        own = round(rest.shape[1]**.5)
        if side == own: return self.pos_embed
        grid = rest.unflatten(1, (own, own)).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, scale_factor=(side + .1)/own, mode='bicubic')
        return torch.cat([first, grid.flatten(2).mT], 1)

    def forward(self, x:Tensor)->Tensor:        # normalised images, square, (B, 3, H, H) -> (B, width)
        "Compute the class token."
        x = self.patch_embed['proj'](x)
        side = x.shape[-1]
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x.flatten(2).mT], 1) + self.places(side)
        return self.norm(self.blocks(x))[:, 0]
