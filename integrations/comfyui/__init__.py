"""ComfyUI nodes of transition models: copy this folder to `ComfyUI/custom_nodes/comfyui-anystep`."""

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
