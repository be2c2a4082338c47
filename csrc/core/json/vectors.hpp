// Vectors in lines of JSON: most of a file of embeddings is their digits, so these are read here,
// and what else a line says is left to a reader of JSON.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/run/views.hpp"
#include "core/run/work.hpp"

namespace pyfast {

struct JsonVectors {
  std::vector<float> values;  // end to end
  std::vector<index> counts;  // vectors in each line
  index width = 0;            // numbers in each vector
  std::string rest;           // the lines, with null for the field
};

// Reads the field `name`, a list of equally long lists of numbers, of lines that hold an object
// each, no newline after the last. Numbers are rounded once, to the nearest float.
//
// Returns false at whatever is not plain: no such field in a line, or two; other values; vectors of
// several lengths or none; a name with escapes; numbers of more than 19 digits, outside of float's
// usual range, or so near to the middle of two floats that double does not tell which is nearer
// (one in tens of millions). The caller reads such lines in another way, which says what is wrong.
bool read_vectors(std::string_view lines, std::string_view name, JsonVectors& out, Work& work);

}  // namespace pyfast
