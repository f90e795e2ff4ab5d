#version 330
// The label of the nearest surface, as the red level. Shadow maps use it too, for the holes between leaves.
uniform sampler2DArray patterns;
in vec2 uv;
flat in vec4 kind;
out vec4 result;

void main() {
#ifdef LEAVES
    if (texture(patterns, vec3(uv, kind.x)).a < 0.5) discard;
#endif
    result = vec4(kind.z / 255.0, 0.0, 0.0, 1.0);
}
