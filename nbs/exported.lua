-- Below an exported cell nbdev writes its documentation: a rule, a link to the source, a heading, the signature, the docstring.
-- The pages show the cell itself, which holds the last two; so only the link and the heading stay, and they stand above it.
local function is_exported(b)
  return b.t == 'Div' and b.classes:includes('cell') and b.attributes.export == 'true'
end

local function is_source(b)
  return b ~= nil and b.t == 'Para' and #b.content == 1 and b.content[1].t == 'Link' and pandoc.utils.stringify(b) == 'source'
end

local function is(b, kind) return b ~= nil and b.t == kind end

function Pandoc(doc)
  local found, heads, cell, i, blocks = pandoc.Blocks{}, pandoc.Blocks{}, nil, 1, doc.blocks
  local function put() -- the headings come last name first
    found:extend(heads)
    if cell then found:insert(cell) end
    heads, cell = pandoc.Blocks{}, nil
  end
  while i <= #blocks do
    local b = blocks[i]
    if is_exported(b) then
      put()
      cell = b
    elseif cell and is(b, 'HorizontalRule') and is_source(blocks[i+1]) and is(blocks[i+2], 'Header') and is(blocks[i+3], 'CodeBlock') then
      heads:insert(1, blocks[i+2])
      heads:insert(1, blocks[i+1])
      i = i + 3
      local after = blocks[i+1]
      if is(after, 'Para') and #after.content == 1 and after.content[1].t == 'Emph' then i = i + 1 end
    else
      put()
      found:insert(b)
    end
    i = i + 1
  end
  put()
  doc.blocks = found
  return doc
end
