// dbias: a block owns a tile of the bias and walks all batch entries and heads (and, where the bias broadcasts over rows or
// columns, all tiles) that share it. Deterministic, without a buffer larger than dbias.
#include <bwd_generic.cu>

// Tile of the bias: which entry of its batch and head, which rows and columns; 0 where it broadcasts.
struct BiasTile {
    Work entry;
    i32 row_tile, column_tile;
};

template <class Tiles, class Schedule, class Hooks>
class BiasGradient {
    using Acc = typename Tiles::Acc;
    using Tile = typename Schedule::Tile;

public:
    __device__ BiasGradient(const AttentionParams& params, const BiasTile& own, TileShared<Tiles, Schedule>& shared)
        : params_(params), own_(own), shared_(shared) {}

    __device__ void run() {
        Work work;
        for (i32 batch = 0; batch < params_.batch; ++batch) {
            set_batch(work, batch, params_.batch_extent);
            if (!shares_batch(work)) continue;
            const Sequence own = sequence(params_, work);
            for (i32 head = 0; head < params_.q_heads; ++head)
                if (params_.bias_heads == 1 || head == own_.entry.head) add_head(work, head, own);
        }
        store_sums();
    }

private:
    __device__ bool shares_batch(const Work& work) const {
        for (int dim = 0; dim < kBatchDims; ++dim)
            if (params_.bias_batch_extent[dim] != 1 && work.batch_index[dim] != own_.entry.batch_index[dim]) return false;
        return true;
    }

    __device__ void add_head(Work work, i32 head, const Sequence& sequence) {
        work.head = head;
        Hooks hooks(params_, work, head, sequence);
        const i32 kv_head = head / (params_.q_heads / params_.kv_heads);
        const GradientOperands operands = query_operands(params_, work, head, kv_head, sequence);
        const bool all_rows = params_.bias_rows == 1, all_columns = params_.bias_columns == 1;
        const i32 first_row = own_.row_tile * Tiles::kOwner, first_column = own_.column_tile * Tiles::kWalk;
        const i32 end_row = all_rows ? sequence.q.length : first_row + 1;
        const i32 end_column = all_columns ? sequence.k.length : first_column + 1;
        for (i32 row = first_row; row < end_row && row < sequence.q.length; row += Tiles::kOwner) {
            Schedule schedule(params_.lists, work, head, params_.q_heads, query_band(params_, sequence), row, Tiles::kOwner,
                              shared_.schedule);
            Tile tile;
            for (i32 column = first_column; column < end_column; column += Tiles::kWalk)
                if (schedule.fetch(tile, column)) add_tile(work, sequence, hooks, operands, schedule, tile, row);
        }
    }

    __device__ void add_tile(const Work& work, const Sequence& sequence, Hooks& hooks, const GradientOperands& operands,
                             const Schedule& schedule, const Tile& tile, i32 first_row) {
        const Place<Tiles, Tile, false> place = {first_row, tile};
        RowStats<Acc> stats[Tiles::kRows];
#pragma unroll
        for (int r = 0; r < Tiles::kRows; ++r)
            stats[r] = load_stats<Acc>(params_, work, work.head, sequence.q, place.owner(r));
        Bits<Tiles> visible = visible_bits<Tiles>(schedule, tile, place);
        Fragment<Tiles> weights, gradients;
        score_gradients<true>(weights, gradients, visible, shared_.product, hooks, place, tile, operands, params_.head_dim,
                              params_.v_dim, [&](int r, int) { return stats[r]; });
#pragma unroll
        for (int r = 0; r < Tiles::kRows; ++r)
#pragma unroll
            for (int c = 0; c < Tiles::kColumns; ++c) sums_[r][c].add(gradients.at[r][c]);
    }

    // Each element of the tile of dbias by one thread, which adds up what it broadcasts over.
    __device__ void store_sums() {
        Fragment<Tiles> sums;
#pragma unroll
        for (int r = 0; r < Tiles::kRows; ++r)
#pragma unroll
            for (int c = 0; c < Tiles::kColumns; ++c) sums.at[r][c] = sums_[r][c].value();
        share_weights(shared_.product, sums);
        block_sync();
        const bool all_rows = params_.bias_rows == 1, all_columns = params_.bias_columns == 1;
        const int rows = all_rows ? 1 : Tiles::kOwner, columns = all_columns ? 1 : Tiles::kWalk;
        u8* start = base(params_.dbias, own_.entry, own_.entry.head);
        for (int n = thread_index(); n < rows * columns; n += Tiles::kThreads) {
            const int r = n / columns, c = n % columns;
            const i32 row = own_.row_tile * Tiles::kOwner + r, column = own_.column_tile * Tiles::kWalk + c;
            if (row >= params_.bias_rows || column >= params_.bias_columns) continue;
            CompensatedSum<Acc> sum = {};
            for (int i = r; i < (all_rows ? Tiles::kOwner : r + 1); ++i)
                for (int j = c; j < (all_columns ? Tiles::kWalk : c + 1); ++j) sum.add(shared_.product.weights[i][j]);
            store(params_.dbias, start + row * params_.dbias.row + column * params_.dbias.column, sum.value());
        }
    }

    const AttentionParams& params_;
    const BiasTile& own_;
    TileShared<Tiles, Schedule>& shared_;
    CompensatedSum<Acc> sums_[Tiles::kRows][Tiles::kColumns] = {};
};

template <class Tiles, class Schedule, class Hooks>
__device__ __forceinline__ void bwd_dbias_generic(const AttentionParams& params) {
    auto& shared = shared_memory<TileShared<Tiles, Schedule>>();
    const u32 row_tiles = ceil_div(params.bias_rows, Tiles::kOwner);
    const u32 column_tiles = ceil_div(params.bias_columns, Tiles::kWalk);
    u32 rest = block_index();
    BiasTile own;
    own.column_tile = rest % column_tiles;
    rest /= column_tiles;
    own.row_tile = rest % row_tiles;
    rest /= row_tiles;
    own.entry.head = rest % params.bias_heads;
    set_batch(own.entry, rest / params.bias_heads, params.bias_batch_extent);
    BiasGradient<Tiles, Schedule, Hooks>(params, own, shared).run();
}
