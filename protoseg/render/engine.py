"""Panda3D without a window: a street and a weather in, a picture and its labels out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from protoseg.render import labels
from protoseg.render.mesh import GROUND, LEAF, SKY, Mesh, Surface, ellipsoid, join
from protoseg.render.street import Street
from protoseg.render.textures import SIZE, texture_layers
from protoseg.render.weather import Weather
from protoseg.types import ProtosegError

OVERSAMPLING = 2
"""The picture is drawn so many times larger and then averaged; labels are those of the pixels' middles."""
_SETTINGS = """
window-type offscreen
audio-library-name null
gl-version 3 3
framebuffer-srgb false
textures-power-2 none
notify-level-display error
notify-level-egldisplay fatal
notify-level-glgsg error
"""
_SUN_AREA, _ZENITH_AREA = 150.0, 120.0
"""Metres that the shadow maps cover, beginning 15 m behind the camera."""
_SUN_MAP, _ZENITH_MAP = 1536, 512
_LAMPS = 6  # as in scene.frag


# What the shader of the picture is compiled for, in the order of drawing, and the part of each material of mesh.py.
_PARTS = ("SOLID", "FACADE", "GROUND", "LEAVES", "SKY")
_PART_OF = np.array([0, 1, 0, 0, 0, 3, 2, 4])


class Renderer:
    """Draws streets at one size. One per process: Panda3D holds one graphics engine.

    Args:
        width, height: of the pictures, in pixels.

    Raises:
        ProtosegError: Panda3D is not installed, or finds no OpenGL that draws without a screen.
    """

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.core = core = _panda3d()
        core.load_prc_file_data("", _SETTINGS)
        self.engine = core.GraphicsEngine.get_global_ptr()
        pipe = core.GraphicsPipeSelection.get_global_ptr().make_module_pipe("p3headlessgl")
        large = (int(width * OVERSAMPLING), int(height * OVERSAMPLING))
        self.picture = self._buffer(pipe, None, "picture", large)
        self.labels = self._buffer(pipe, self.picture, "labels", (width, height))
        patterns = self._patterns()
        self.shaders: dict[tuple[str, ...], Any] = {}
        self.scenes: dict[str, Any] = {}
        self.cameras: dict[str, Any] = {}
        for name, buffer in (("picture", self.picture), ("labels", self.labels)):
            self._pass(name, buffer, core.PerspectiveLens(), patterns)
        self.depth = {}
        for name, size, area in (("sun", _SUN_MAP, _SUN_AREA), ("zenith", _ZENITH_MAP, _ZENITH_AREA)):
            texture = core.Texture(f"{name} depth")
            buffer = self._buffer(pipe, self.picture, name, (size, size), texture)
            lens = core.OrthographicLens()
            lens.set_film_size(area, area)
            lens.set_near_far(1, 400)
            self._pass(name, buffer, lens, patterns)
            self.depth[name] = texture
        self.pixels = {name: core.Texture(name) for name in ("picture", "labels")}
        for name, buffer in (("picture", self.picture), ("labels", self.labels)):
            buffer.add_render_texture(self.pixels[name], core.GraphicsOutput.RTM_copy_ram)
        self.dome = ellipsoid((0, 0, 0), (900, 900, 900), Surface(labels.SKY, (1, 1, 1), material=SKY), 24)

    def draw(self, street: Street, weather: Weather, drift: tuple[float, float]) -> tuple[NDArray[np.uint8], ...]:
        """The picture, RGB ``height width 3``, and the labels, indices of ``labels.CLASSES``, ``height width``.

        Args:
            drift: where in their pattern the clouds are, 0 to 1 each.
        """
        self._aim(street, weather)
        self._fill(join([street.mesh, self.dome]), street.eye, weather)
        self._light(street, weather, drift)
        self.engine.render_frame()
        picture = cv2.resize(self._read("picture"), (self.width, self.height), interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray(picture[..., 2::-1]), np.ascontiguousarray(self._read("labels")[..., 2])

    def close(self) -> None:
        """Give the buffers back."""
        self.engine.remove_all_windows()

    def _buffer(self, pipe: Any, host: Any, name: str, size: tuple[int, int], depth: Any = None) -> Any:
        core = self.core
        properties = core.FrameBufferProperties()
        properties.set_rgba_bits(8, 8, 8, 8)
        properties.set_depth_bits(24)
        flags = core.GraphicsPipe.BF_refuse_window
        window = core.WindowProperties.size(*size)
        arguments = (pipe, name, -10 if depth else 0, properties, window, flags)
        buffer = (
            None if pipe is None else self.engine.make_output(*arguments, *((host.get_gsg(), host) if host else ()))
        )
        if buffer is None:
            raise ProtosegError(
                "render: expected an OpenGL 3.3 that draws without a screen (EGL), got none: install Mesa's software "
                "renderer (Debian, Ubuntu: apt install libegl1 libgl1-mesa-dri) or a GPU driver with EGL"
            )
        if depth is not None:
            buffer.add_render_texture(depth, core.GraphicsOutput.RTM_bind_or_copy, core.GraphicsOutput.RTP_depth)
            depth.set_minfilter(core.SamplerState.FT_shadow)
            depth.set_magfilter(core.SamplerState.FT_shadow)
        self.engine.open_windows()
        return buffer

    def _pass(self, name: str, buffer: Any, lens: Any, patterns: Any) -> None:
        """A camera with a scene of its own, which is drawn into ``buffer``, part by part."""
        core = self.core
        scene = core.NodePath(name)
        scene.set_shader_input("patterns", patterns)
        scene.set_two_sided(True)
        # The sky last: what is hidden costs nothing.
        for order, part in enumerate(_PARTS):
            scene.attach_new_node(part).set_bin("fixed", order)
        camera = scene.attach_new_node(core.Camera(name, lens))
        region = buffer.make_display_region()
        region.set_camera(camera)
        region.set_clear_color_active(True)
        region.set_clear_color((labels.VOID / 255, 0, 0, 1))
        region.set_clear_depth_active(True)
        self.scenes[name], self.cameras[name] = scene, camera

    def _fill(self, mesh: Mesh, eye: NDArray[np.float64], weather: Weather) -> None:
        """Give every pass the triangles it can see, and their shaders."""
        data = self._vertex_data(mesh)
        part = _PART_OF[mesh.vertices[mesh.triangles[:, 0], 13].astype(int)]
        seen = in_view(mesh, eye, _matrix(self.cameras["picture"]))
        casting = np.flatnonzero(casts_shadow(mesh))
        extra = [
            word
            for word, needed in (("SUN", any(weather.sun)), ("LAMPS", weather.lamps), ("WET", weather.wet))
            if needed
        ]
        under_sun = casting if any(weather.sun) else casting[:0]
        for name, chosen in (("picture", seen), ("labels", seen), ("sun", under_sun), ("zenith", casting)):
            for i, word in enumerate(_PARTS):
                node = self.scenes[name].find(word)
                node.get_children().detach()
                node.attach_new_node(self._geometry(data, mesh.triangles[chosen[part[chosen] == i]]))
                node.set_shader(
                    self._shader("scene", word, *extra) if name == "picture" else self._shader("label", word)
                )

    def _shader(self, fragment: str, *words: str) -> Any:
        """The shader of ``fragment`` with ``words`` defined."""
        key = (fragment, *words)
        if key not in self.shaders:
            folder = Path(__file__).parent / "shaders"
            vertex, code = ((folder / file).read_text() for file in ("scene.vert", f"{fragment}.frag"))
            version, rest = code.split("\n", 1)
            defined = "".join(f"#define {word}\n" for word in words)
            self.shaders[key] = self.core.Shader.make(self.core.Shader.SL_GLSL, vertex, f"{version}\n{defined}{rest}")
        return self.shaders[key]

    def _patterns(self) -> Any:
        core, layers = self.core, texture_layers()
        texture = core.Texture("patterns")
        texture.setup_2d_texture_array(SIZE, SIZE, len(layers), core.Texture.T_unsigned_byte, core.Texture.F_rgba8)
        texture.set_ram_image(layers.tobytes())
        texture.set_minfilter(core.SamplerState.FT_linear_mipmap_linear)
        texture.set_wrap_u(core.SamplerState.WM_repeat)
        texture.set_wrap_v(core.SamplerState.WM_repeat)
        return texture

    def _vertex_data(self, mesh: Mesh) -> Any:
        core = self.core
        array = core.GeomVertexArrayFormat()
        name, number = core.InternalName.make, core.Geom.NT_float32
        for column, size, kind in (
            ("vertex", 3, core.Geom.C_point), ("normal", 3, core.Geom.C_normal), ("texcoord", 2, core.Geom.C_texcoord),
            ("color", 4, core.Geom.C_color), ("surface", 4, core.Geom.C_other),
        ):  # fmt: skip
            array.add_column(name(column), size, number, kind)
        data = core.GeomVertexData("street", core.GeomVertexFormat.register_format(array), core.Geom.UH_static)
        data.unclean_set_num_rows(len(mesh.vertices))
        data.modify_array_handle(0).copy_data_from(np.ascontiguousarray(mesh.vertices))
        return data

    def _geometry(self, data: Any, indices: NDArray[np.int32]) -> Any:
        core = self.core
        triangles = core.GeomTriangles(core.Geom.UH_static)
        triangles.set_index_type(core.Geom.NT_uint32)
        index = triangles.modify_vertices()
        index.unclean_set_num_rows(indices.size)
        index.modify_handle().copy_data_from(np.ascontiguousarray(indices.reshape(-1), dtype=np.uint32))
        geom = core.Geom(data)
        geom.add_primitive(triangles)
        node = core.GeomNode("street")
        node.add_geom(geom)
        return node

    def _aim(self, street: Street, weather: Weather) -> None:
        core = self.core
        yaw, pitch, roll = np.rad2deg(street.heading)
        for name in ("picture", "labels"):
            lens = self.cameras[name].node().get_lens()
            lens.set_near_far(0.4, 1200)
            lens.set_aspect_ratio(self.width / self.height)
            lens.set_fov(street.view)
            self.cameras[name].set_pos(*street.eye)
            self.cameras[name].set_hpr(yaw, pitch, roll)
        for name, direction in (("sun", sun_direction(weather)), ("zenith", np.array([0.0, 0.03, 1.0]))):
            area = _SUN_AREA if name == "sun" else _ZENITH_AREA
            middle = np.array([0, area / 2 - 15, 0])
            self.cameras[name].set_pos(*(middle + 200 * direction))
            self.cameras[name].look_at(
                core.Point3(*middle), core.Vec3(0, 1, 0) if name == "zenith" else core.Vec3(0, 0, 1)
            )

    def _light(self, street: Street, weather: Weather, drift: tuple[float, float]) -> None:
        core, scene = self.core, self.scenes["picture"]
        for name in ("sun", "zenith"):
            camera = self.cameras[name]
            scene.set_shader_input(f"{name}_matrix", core.LMatrix4f(*_matrix(camera).ravel()))
            scene.set_shader_input(f"{name}_depth", self.depth[name])
        scene.set_shader_input("eye", core.Vec3(*street.eye))
        scene.set_shader_input("sun_direction", core.Vec3(*sun_direction(weather)))
        for name in ("sun", "zenith", "horizon", "glow"):
            scene.set_shader_input(name, core.Vec3(*getattr(weather, name)))
        scene.set_shader_input("air", core.Vec4(weather.clouds, weather.fog, weather.wet, weather.windows))
        scene.set_shader_input("camera", core.Vec2(weather.exposure, weather.lamps))
        scene.set_shader_input("drift", core.Vec2(*drift))
        near = sorted((lamp for lamp in street.lamps if lamp[1] > -12), key=lambda lamp: lamp[1])[:_LAMPS]
        lamps = core.PTA_LVecBase4f.empty_array(_LAMPS)
        for i, lamp in enumerate(near):
            lamps.set_element(i, core.LVecBase4f(*lamp, 1))
        scene.set_shader_input("lamps", lamps)

    def _read(self, name: str) -> NDArray[np.uint8]:
        """Blue, green, red, alpha, ``height width 4``; OpenGL's first row is the lowest."""
        texture = self.pixels[name]
        data = np.frombuffer(texture.get_ram_image(), np.uint8)
        return data.reshape(texture.get_y_size(), texture.get_x_size(), 4)[::-1]


def sun_direction(weather: Weather) -> NDArray[np.float64]:
    """The unit vector to the sun, ``3``."""
    azimuth, elevation = np.deg2rad(weather.azimuth), np.deg2rad(weather.elevation)
    return np.array([np.sin(azimuth) * np.cos(elevation), np.cos(azimuth) * np.cos(elevation), np.sin(elevation)])


def in_view(mesh: Mesh, eye: NDArray[np.float64], matrix: NDArray[np.float32]) -> NDArray[np.int64]:
    """Indices of the triangles that face ``eye`` and lie in the frustum of ``matrix`` (row vectors), nearest first."""
    position = mesh.vertices[:, :3]
    clip = position @ matrix[:3] + matrix[3]
    outside = np.concatenate([clip[:, :2] > clip[:, 3:], -clip[:, :2] > clip[:, 3:], clip[:, 3:] < 0.1], axis=1)
    away = ((position - eye.astype(np.float32)) * mesh.vertices[:, 3:6]).sum(1) > 0
    hidden = np.concatenate([outside, (away & (mesh.vertices[:, 13] < LEAF))[:, None]], axis=1)
    a, b, c = mesh.triangles.T
    seen = np.flatnonzero(~(hidden[a] & hidden[b] & hidden[c]).any(1))
    return seen[np.argsort(clip[a[seen], 3], kind="stable")]


def casts_shadow(mesh: Mesh) -> NDArray[np.bool_]:
    """Which triangles may throw a shadow on what lies near: all but the ground, the sky and the far end."""
    first = mesh.vertices[mesh.triangles[:, 0]]
    return (first[:, 13] < GROUND) & (first[:, 1] < _SUN_AREA - 15)


def _matrix(camera: Any) -> NDArray[np.float32]:
    """World to clip coordinates, for row vectors."""
    mat = camera.get_transform().get_inverse().get_mat() * camera.node().get_lens().get_projection_mat()
    return np.array(mat, np.float32)


def missing_panda3d(reason: object) -> ProtosegError:
    """The error of a command that needs Panda3D where there is none."""
    return ProtosegError(f"render: expected Panda3D, got none ({reason}): pip install 'protoseg[render]'")


def _panda3d() -> Any:
    try:
        from panda3d import core  # type: ignore[import-untyped,import-not-found]
    except ImportError as error:
        raise missing_panda3d(error) from error
    return core
