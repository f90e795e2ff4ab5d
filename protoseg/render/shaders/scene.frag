#version 330
// Colour: sun with shadows, sky light with occlusion, lamps, windows, wet ground, fog, tone curve. Numbers of
// materials are those of mesh.py. A software renderer runs both sides of every branch, so the engine compiles this once
// per kind of surface, with one of SKY, FACADE, GROUND, LEAVES and SOLID defined, and SUN, LAMPS and WET where there are any.
uniform sampler2DArray patterns;
uniform sampler2DShadow sun_depth;
uniform sampler2DShadow zenith_depth;
uniform mat4 sun_matrix;
uniform mat4 zenith_matrix;
uniform vec3 eye;
uniform vec3 sun_direction;
uniform vec3 sun;
uniform vec3 zenith;
uniform vec3 horizon;
uniform vec3 glow;
uniform vec4 air;        // clouds, fog, wet, share of windows lit
uniform vec2 camera;     // exposure, brightness of lamps
uniform vec2 drift;      // of the clouds
uniform vec4 lamps[6];
in vec3 place;
in vec3 normal;
in vec2 uv;
in vec3 color;
flat in float gloss;
flat in vec4 kind;
out vec4 result;

const float MATTE = 0.0, GLOW = 2.0, PAINT = 3.0;
const float CLOUDS = 11.0;

float hash(vec2 p) { return fract(sin(dot(p, vec2(127.1, 311.7))) * 43758.5453); }

// The tone curve (K. Narkowicz's fit of ACES) and the sRGB exponent.
vec4 toned(vec3 light) {
    light *= camera.x;
    light = light * (2.51 * light + 0.03) / (light * (2.43 * light + 0.59) + 0.14);
    return vec4(pow(clamp(light, 0.0, 1.0), vec3(1.0 / 2.2)), 1.0);
}

vec3 sky(vec3 direction) {
    float toward = max(dot(direction, sun_direction), 0.0), height = max(direction.z, 0.0);
    vec3 light = mix(horizon, zenith, pow(smoothstep(0.0, 0.6, height), 0.6));
    return light + glow * (0.7 * pow(toward, 6.0) * (1.0 - 0.6 * height) + 0.5 * pow(toward, 60.0));
}

#ifdef SKY
void main() {
    vec3 view = normalize(place - eye);
    float toward = max(dot(view, sun_direction), 0.0), height = max(view.z, 0.0);
    vec2 at = view.xy / (height + 0.12) * 0.16 + drift;
    float cover = texture(patterns, vec3(at, CLOUDS)).r * 1.3 + 0.45 * texture(patterns, vec3(at * 3.1, CLOUDS)).r;
    cover = smoothstep(1.18 - 0.9 * air.x, 1.65 - 0.9 * air.x, cover) * smoothstep(0.0, 0.2, height);
    float shade = texture(patterns, vec3(at * 1.4 + 0.03 * sun_direction.xy, CLOUDS)).r;
    vec3 cloud = mix(horizon, vec3(dot(horizon, vec3(0.4))), 0.6) * (0.62 + 0.7 * shade) + sun * 0.16 + glow * 0.35 * pow(toward, 3.0);
    vec3 light = mix(sky(view), cloud, cover * 0.85) + sun * 6.0 * smoothstep(0.9994, 0.9998, toward) * (1.0 - cover);
    result = toned(mix(light, mix(horizon, zenith, 0.3), smoothstep(0.006, 0.03, air.y)));
}
#else

// What a shiny surface mirrors: the sky above, the other side of the street below.
vec3 mirrored(vec3 direction) {
    vec3 houses = 0.30 * mix(horizon, zenith, 0.5) + 0.05 * sun;
    return mix(houses, sky(direction), smoothstep(0.05, 0.45, direction.z));
}

float shadow(sampler2DShadow map, mat4 matrix, vec3 at, float radius, float bias) {
    vec4 clip = matrix * vec4(at, 1.0);
    vec3 spot = clip.xyz * 0.5 + 0.5;
    spot.z -= bias;
    float turn = 6.2832 * hash(gl_FragCoord.xy);
    vec2 a = radius * vec2(cos(turn), sin(turn)), b = vec2(-a.y, a.x) * 0.6;
    float lit = 0.25 * (texture(map, spot + vec3(a, 0)) + texture(map, spot - vec3(a, 0))
        + texture(map, spot + vec3(b, 0)) + texture(map, spot - vec3(b, 0)));
    return any(greaterThan(abs(clip.xyz), vec3(0.99))) ? 1.0 : lit;
}

// Share of a pixel that lies between two lines, smooth over a pixel.
float between(float x, float low, float high, float width) {
    return clamp((x - low) / width + 0.5, 0.0, 1.0) - clamp((x - high) / width + 0.5, 0.0, 1.0);
}

float window(vec2 f, vec2 low, vec2 high, vec2 w) {
    return between(f.x, low.x, high.x, w.x) * between(f.y, low.y, high.y, w.y);
}

// Windows on a wall: changes albedo and shine, returns light from inside.
vec3 facade(inout vec3 albedo, inout float shine) {
    float seed = fract(kind.w);
    vec2 cell = floor(uv), f = fract(uv), w = max(fwidth(uv), vec2(1e-4));
    bool shop = kind.w >= 1.0 && cell.y < 1.0;
    vec2 size = shop ? vec2(0.90, 0.66) : vec2(mix(0.30, 0.62, hash(vec2(seed, 1))), mix(0.42, 0.62, hash(vec2(seed, 2))));
    float foot = shop ? 0.10 : mix(0.22, 0.30, hash(vec2(seed, 3)));
    vec2 low = vec2(0.5 - size.x / 2.0, foot), high = low + size, rim = vec2(0.028, 0.024);
    float opening = window(f, low - rim, high + rim, w), pane = window(f, low, high, w);
    float sill = window(f, low - vec2(0.06, 0.05), vec2(high.x + 0.06, low.y - 0.02), w);
    float lintel = window(f, vec2(low.x - 0.05, high.y + 0.02), vec2(high.x + 0.05, high.y + 0.07), w);
    vec3 trim = mix(albedo * 1.25, vec3(0.55), step(0.5, hash(vec2(seed, 4))));
    albedo *= 1.0 - 0.35 * smoothstep(0.25, 0.0, uv.y) - 0.12 * window(f, low - vec2(0.0, 0.2), vec2(high.x, low.y), w);
    albedo = mix(albedo, trim, max(sill, lintel * step(0.4, hash(vec2(seed, 5)))));
    vec3 frame = hash(vec2(seed, 6)) < 0.65 ? vec3(0.62) : vec3(0.05, 0.045, 0.04);
    albedo = mix(albedo, frame, opening);
    // Bars; shops have none.
    vec2 g = (f - low) / size;
    float columns = shop ? 1.0 : hash(vec2(seed, 7)) < 0.6 ? 2.0 : 1.0, rows = shop ? 1.0 : 1.0 + floor(2.0 * hash(vec2(seed, 8)));
    vec2 bar = abs(fract(g * vec2(columns, rows) + 0.5) - 0.5) / vec2(columns, rows) * size;
    bar = clamp((bar - 0.012) / w + 0.5, 0.0, 1.0);
    pane *= mix(1.0, bar.x, float(columns > 1.5)) * mix(1.0, bar.y, float(rows > 1.5));
    float chance = hash(cell + seed * 17.0), other = hash(cell.yx + seed * 31.0);
    float deep = smoothstep(0.0, 0.14, 1.0 - g.y) * (0.5 + 0.5 * smoothstep(0.0, 0.1, g.x));
    float curtain = shop ? 0.0 : step(0.45, other) * (1.0 - smoothstep(0.16, 0.20, abs(g.x - 0.5) * -1.0 + 0.5));
    float blind = shop ? 0.0 : step(0.75, chance) * smoothstep(other * 0.9, other * 0.9 + 0.02, g.y);
    vec3 room = mix(vec3(0.025, 0.028, 0.032), vec3(0.34, 0.32, 0.29), max(0.7 * curtain, blind));
    if (shop) room = mix(vec3(0.03), vec3(0.20, 0.15, 0.11), step(0.35, hash(floor(g * vec2(5.0, 3.0)) + cell)));
    albedo = mix(albedo, room * deep, pane);
    shine = 0.9 * pane;
    float lit = step(1.0 - air.w * (shop ? 1.8 : 1.0), chance);
    vec3 lamp = mix(vec3(1.0, 0.62, 0.28), vec3(0.95, 0.85, 0.65), other) * (shop ? 0.6 : 0.32);
    return pane * lit * lamp * (0.35 + 0.65 * g.y) * (0.5 + room * 2.0) * deep;
}

void main() {
    vec3 view = normalize(place - eye);
    float far = length(place - eye);
    vec2 tile = uv;
#ifdef FACADE
    tile *= vec2(2.6, 3.1) / 2.2;
#endif
    vec4 pattern = texture(patterns, vec3(tile, kind.x));
#ifdef LEAVES
    if (pattern.a < 0.5) discard;
#endif
    vec3 albedo = color * pattern.bgr * 1.992, inside = vec3(0.0), n = normalize(normal);
    float shine = gloss;
#ifdef LEAVES
    n = normalize(n - 0.25 * view);
    albedo *= 0.7 + 0.6 * kind.w;
#else
    n = dot(n, view) > 0.0 ? -n : n;
#endif
#ifdef GROUND
    albedo *= 0.72 + 0.56 * texture(patterns, vec3(place.xy * 0.021, CLOUDS)).r;
#endif
#ifdef FACADE
    albedo *= 0.72 + 0.56 * texture(patterns, vec3(uv * 0.11 + kind.w, CLOUDS)).r;
    inside = facade(albedo, shine);
#endif
#ifdef SOLID
    if (kind.y == GLOW) inside = color * (gloss > 0.8 ? 1.0 : 0.25 + gloss * 2.2 * min(camera.y, 1.0));
#endif
#ifdef WET
#ifdef GROUND
    float wet = air.z * smoothstep(0.8, 1.0, n.z);
    float puddle = wet * smoothstep(0.42, 0.62, texture(patterns, vec3(place.xy * 0.045, CLOUDS)).r);
    albedo *= 1.0 - 0.45 * wet;
#else
    albedo *= 1.0 - 0.3 * air.z * float(kind.y == MATTE);
#endif
#endif

    // Light from the sun and the sky; leaves let light through.
#ifdef LEAVES
    float toward = max(0.35 + 0.65 * dot(n, sun_direction), 0.12), least = 0.45, back = 0.3;
#else
    float toward = max(dot(n, sun_direction), 0.0), least = 0.30, back = 0.0;
#endif
#ifdef SUN
    float lit = shadow(sun_depth, sun_matrix, place + n * 0.10, 0.0006, 0.0010);
#else
    float lit = 0.0;
#endif
    float open = shadow(zenith_depth, zenith_matrix, place + n * 0.6 + vec3(0, 0, 0.1), 0.009, 0.0018);
    open = mix(least, 1.0, open);
    vec3 above = mix(horizon, zenith, 0.55) + 0.25 * glow, below = above * 0.22 + sun * max(sun_direction.z, 0.0) * 0.10;
    vec3 light = mix(below, above, 0.5 + 0.5 * n.z) * open + sun * toward * lit;

    // Street lamps shine down, head lamps ahead.
    float spark = 0.0;
#ifdef LAMPS
    for (int i = 0; i < 6; ++i) {
        vec3 to = lamps[i].xyz - place;
        float square = dot(to, to), inverse = inversesqrt(square);
        float cone = smoothstep(0.15, 0.75, to.z * inverse);
        float facing = max(dot(n, to) * inverse, back);
        light += vec3(1.0, 0.72, 0.40) * (34.0 * camera.y * lamps[i].w * cone * facing / (6.0 + square));
#ifdef GROUND
        // The lamp's mirror image on a rough road: a streak towards the viewer.
        float aside = max(dot(normalize(to.xy), normalize(view.xy)), 0.0), above = (-view.z - to.z * inverse) / 0.10;
        spark += lamps[i].w * pow(aside, 3000.0) * exp(-above * above) / (1.0 + 0.02 * square);
#endif
    }
    vec3 ray = place - vec3(eye.x, eye.y + 0.6, eye.z - 0.7);
    float square = dot(ray, ray);
    ray *= inversesqrt(square);
    float beam = smoothstep(0.86, 0.99, dot(ray, normalize(vec3(0.0, 1.0, -0.035))));
    light += vec3(1.0, 0.93, 0.80) * (70.0 * camera.y * beam * (0.12 + max(-dot(n, ray), 0.0)) / (50.0 + square));
#endif
    vec3 radiance = albedo * light + inside;

    // Mirrored sky, and the sun's highlight.
#if defined(SOLID) || defined(FACADE)
    vec3 r = reflect(view, n);
    float grazing = pow(1.0 - max(-dot(view, n), 0.0), 5.0);
    float weight = shine * (kind.y == PAINT ? 0.06 + 0.7 * grazing : 0.10 + 0.9 * grazing);
    vec3 mirror = weight * open * mirrored(r) + shine * lit * sun * 1.5 * pow(max(dot(r, sun_direction), 0.0), 90.0);
    radiance += kind.y == GLOW ? vec3(0.0) : mirror;
#endif
#if defined(WET) && defined(GROUND)
    vec2 ripple = vec2(hash(floor(place.xy * 9.0)), hash(floor(place.yx * 9.0))) - 0.5;
    vec3 r = reflect(view, normalize(n + vec3(ripple * 0.05 * (1.0 - puddle), 0.0)));
    float grazing = pow(1.0 - max(-dot(view, n), 0.0), 3.0);
    radiance += open * mirrored(r) * (0.08 + 0.72 * grazing) * max(0.45 * wet, puddle);
    radiance += vec3(1.0, 0.72, 0.40) * camera.y * spark * 6.0 * wet;
#endif
    vec3 haze = mix(horizon, zenith, 0.3) + glow * 0.25 * pow(max(dot(view, sun_direction), 0.0), 4.0);
    result = toned(mix(haze, radiance, exp(-air.y * far)));
}
#endif
