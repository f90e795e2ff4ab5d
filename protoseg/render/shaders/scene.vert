#version 330
// Every pass: the mesh of mesh.py, already in world coordinates.
uniform mat4 p3d_ModelViewProjectionMatrix;
in vec4 p3d_Vertex;
in vec3 p3d_Normal;
in vec2 p3d_MultiTexCoord0;
in vec4 p3d_Color;    // linear colour, gloss
in vec4 surface;      // texture layer, material, label, seed
out vec3 place;
out vec3 normal;
out vec2 uv;
out vec3 color;
flat out float gloss;
flat out vec4 kind;

void main() {
    gl_Position = p3d_ModelViewProjectionMatrix * p3d_Vertex;
    place = p3d_Vertex.xyz;
    normal = p3d_Normal;
    uv = p3d_MultiTexCoord0;
    color = p3d_Color.rgb;
    gloss = p3d_Color.a;
    kind = surface;
}
