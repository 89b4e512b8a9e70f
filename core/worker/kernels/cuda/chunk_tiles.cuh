// What kernels that attend to chunks of prompts share.

#define LOWEST __int_as_float(0xff800000)
#define LOG2_E 1.4426950408889634f

// What a head's sink adds to its softmax sum: a score that belongs to no column (arXiv 2309.17453). top: in base 2.
__device__ __forceinline__ float of_sink(const u16* sinks, int head, float top) {
    return sinks && top != LOWEST ? exp2f(to_float(sinks[head]) * LOG2_E - top) : 0.0f;
}

// Which tokens of a pass a block takes: a tile of one chunk, from its row `first_row` on. `begin`: the column of the
// tile's first token; `num_there`: how many of its rows are the chunk's.
struct ChunkTile {
    i64 slot;
    int first_row, begin, num_there;
    bool is_padding;
};

// The tile `index`, of TILE_TOKENS, of the chunks [num_chunks][4] of slot, first column, tokens, first row, whose rows
// follow one another. A tile never has tokens of two chunks, and begins where it does if its chunk is alone: so a token's
// result does not depend on the others. The rows behind the last chunk are tiled too.
template <int TILE_TOKENS>
__device__ __forceinline__ bool find_tile(const i64* chunks, int num_chunks, int tokens, int index, ChunkTile& tile) {
    int row = 0;
    for (int i = 0; i <= num_chunks; i++) {
        const bool is_padding = i == num_chunks;
        const int count = is_padding ? tokens - row : (int)chunks[i * 4 + 2];
        const int tiles = (count + TILE_TOKENS - 1) / TILE_TOKENS, at = index * TILE_TOKENS;
        if (index < tiles) {
            tile.slot = is_padding ? chunks[0] : chunks[i * 4];
            tile.begin = is_padding ? 0 : (int)chunks[i * 4 + 1] + at;
            tile.first_row = row + at, tile.num_there = min(TILE_TOKENS, count - at);
            tile.is_padding = is_padding;
            return true;
        }
        index -= tiles, row += count;
    }
    return false;
}
