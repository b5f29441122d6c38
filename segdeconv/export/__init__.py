"""Trained networks in forms that others read: encoders, safetensors, ONNX, torch.export programs.

Every file is compared with the network that it came from before it gets its name: what differs by
more than rounding is an error and leaves nothing behind.

    encoder/                      network/
        config.json                   config.json
        model.safetensors             model.safetensors   folded: plain layers only
                                      model.onnx          (N, 3, H, W) -> logits, or classes
    pretrained/                       model.pt2           the same as a torch.export program
        config.json, model.safetensors, README.md: see `segdeconv.models.pretrained`

A folded encoder has the keys of the library's own: each convolution's bias goes into the batch norm
behind it, which has nothing else to do in evaluation.  So the file loads strictly into networks
that never heard of whitening.
"""

from segdeconv.export.comparison import Check as Check
from segdeconv.export.encoder import export_encoder as export_encoder
from segdeconv.export.files import FORMATS as FORMATS
from segdeconv.export.files import new_folder as new_folder
from segdeconv.export.network import Deployed as Deployed
from segdeconv.export.network import export_network as export_network
from segdeconv.export.network import load_network as load_network
from segdeconv.export.pretrained import export_pretrained as export_pretrained
