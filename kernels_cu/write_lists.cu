// From words to lists. What a capacity has no room for is left out: its row's start and end tell.
#include <lists/params.cuh>
#include <lists/warps.cuh>

// Where block `column` stands in a row's list, of those that were written; -1 if it is not there.
__device__ __forceinline__ i64 place_of(const ListSide& side, i64 row, i32 column, i64 capacity) {
    i64 begin = max(side.partial_indptr[row], 0ll), end = min(side.partial_indptr[row + 1], capacity);
    while (begin < end) {
        const i64 middle = begin + (end - begin) / 2;
        const i32 there = side.partial_indices[middle];
        if (there == column) return middle;
        if (there < column) begin = middle + 1;
        else end = middle;
    }
    return -1;
}

// Blocks of a row, 32 at a time: `write(place, column)`.
template <class Write>
__device__ __forceinline__ void expand(const u32* words, i32 row_words, i64 place, i64 capacity, Write write) {
    for (i32 n = 0; n < row_words; ++n) {
        const u32 word = words[n];
        const i64 to = place + rank_of_lane(word);
        if (word >> lane_index() & 1u && to < capacity) write(to, 32 * n + static_cast<i32>(lane_index()));
        place += population_count(word);
    }
}

// Each PARTIAL block has a pattern of its own, at its place in the lists that came from the source.
template <int kThreads>
__device__ __forceinline__ void write_lists(const ListParams& params) {
    const ListSide &own = params.own, &other = params.other;
    for_each_by_warp<kThreads>(all_rows(params), [&](i64 row) {
        const ListRow at(params, row);
        expand(own.full_words + row * own.row_words, own.row_words, own.full_indptr[row], params.capacity,
               [&](i64 place, i32 column) { own.full_indices[place] = column; });
        if (!own.partial_words) return;
        const i64 first_other = (static_cast<i64>(at.batch) * params.heads + at.head) * other.rows;
        expand(own.partial_words + row * own.row_words, own.row_words, own.partial_indptr[row], params.partial_capacity,
               [&](i64 place, i32 column) {
                   const i64 id = other.full_indptr ? place_of(other, first_other + column, at.row, params.partial_capacity) : place;
                   own.partial_indices[place] = column;
                   own.bits_id[place] = static_cast<i32>(id < 0 ? 0 : id);
               });
    });
}
